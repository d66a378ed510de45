"""Records of a run, written by rank 0: metrics.jsonl, TensorBoard, log lines, and the training's progress."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.logging import RichHandler

from fastmoco.runs.appended import Appended, rewind
from fastmoco.runs.disk import Disk
from shards.progress import Bar, Pace, console
from shards.storage.files import write_whole
from shards.words import duration, in_words

log = logging.getLogger(__name__)


def set_up_logging() -> None:
    """Log to stderr: formatted by rich in a terminal, else as plain dated lines."""
    if console.is_interactive or console.is_jupyter:
        handler: logging.Handler = RichHandler(console=console, show_path=False, log_time_format="[%X]")
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("torch.distributed").setLevel(logging.WARNING)


class RunLog:
    """Writer of one run's records.

    Args:
        run: the run folder; created if missing.
        config: settings in plain values, written to config.json.
        step: the step that the run resumes from. Records of later steps, written after its checkpoint, are dropped; at
            0 all are, as the run makes those of step 0 again.
        pace: the run's, in steps; this object keeps it up to date.
        disk: bears files that cannot be written; their content is written later.

    Attributes:
        figures: the newest ones in metrics.jsonl when the run begins, or has gone back.
    """

    def __init__(self, run: Path, config: dict[str, Any], step: int, pace: Pace, disk: Disk | None = None) -> None:
        from fastmoco.runs.board import Board  # here: TensorBoard loads torch, and logging is set up before that
        from fastmoco.runs.wandb_board import WandbBoard

        run.mkdir(parents=True, exist_ok=True)
        self._disk, text = disk or Disk(), (json.dumps(config, indent=2) + "\n").encode()
        self._unwritten: dict[str, Callable[[], None]] = {
            "config.json": lambda: write_whole(run / "config.json", text),
        }
        self.figures = rewind(run / "metrics.jsonl", step or -1)
        self._metrics = Appended(run / "metrics.jsonl")
        self._wandb = WandbBoard(run, config) if config.get("wandb") else None
        self._board = Board(run / "tensorboard", config, step)
        self._flush()
        self._bar = Bar("train", pace, "step {:,} of {:,}", say=None)  # the log has lines of its own
        self._shown = ExitStack()
        self._shown.enter_context(self._bar.shown())

    def rewind(self, step: int) -> None:
        """Drop the records of the steps after `step`."""
        self._flush()
        self._metrics.close()
        self._disk.write("metrics.jsonl", lambda: self._rewind_metrics(step))
        self._metrics = Appended(self._metrics.path)
        self._board.rewind(step)
        self._flush()
        self._bar.reach(step)

    def _rewind_metrics(self, step: int) -> None:
        self.figures = rewind(self._metrics.path, step)

    def advance(self, step: int) -> None:
        """Move the progress bar to `step` steps done."""
        self._bar.reach(step)

    def write(self, record: dict[str, Any], line: str) -> None:
        """Record figures.

        Args:
            record: figures with their `step`.
            line: the same as text.
        """
        self._metrics.add(json.dumps(record).encode() + b"\n")
        self._board.write(record)
        if self._wandb:
            self._wandb.write(record)
        self._flush()  # a killed run keeps its lines, and `tail -f` shows them
        pace = self._bar.pace
        self._bar.reach(pace.done, line)
        left = pace.left()
        time_left = "time left not known yet" if left is None else f"{duration(left)} left"
        log.info("step %d/%d  %s  %s", record["step"], pace.total, time_left, line)

    def show(self, name: str, picture: Path, step: int) -> None:
        """Show a PNG or JPEG of the run in TensorBoard and Weights & Biases."""
        self._board.show(name, picture, step)
        if self._wandb:
            self._wandb.show(name, picture, step)
        self._flush()

    def note(self, record: dict[str, Any]) -> None:
        """Record what is no figure, with its `step`, in metrics.jsonl alone."""
        self._metrics.add(json.dumps(record).encode() + b"\n")
        self._flush()

    def _flush(self) -> None:
        for name, write in list(self._unwritten.items()):
            if self._disk.write(name, write):
                del self._unwritten[name]
        self._disk.write("metrics.jsonl", self._metrics.flush)
        self._disk.write("tensorboard", self._board.flush)

    def close(self) -> None:
        """Write what could not be written before, and close the files; what is lost is said."""
        self._shown.close()
        for name, flush in [
            *self._unwritten.items(),
            ("metrics.jsonl", self._metrics.flush),
            ("tensorboard", self._board.flush),
        ]:
            try:
                flush()
            except OSError as error:
                log.error("%s is not complete: %s", name, in_words(error))
        self._metrics.close()
        self._board.close()
        if self._wandb:
            self._wandb.close()
