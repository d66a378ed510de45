"""Records of a run, written by rank 0: metrics.jsonl, TensorBoard, log lines, and the training's progress."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.logging import RichHandler

from shards.progress import Bar, Pace, console
from shards.storage.files import write_whole
from shards.words import duration

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
        step: the step that the run resumes from. Records of later steps, written after its checkpoint, are dropped.
        pace: the run's, in steps; this object keeps it up to date.
    """

    def __init__(self, run: Path, config: dict[str, Any], step: int, pace: Pace) -> None:
        from fastmoco.runs.board import Board  # here: TensorBoard loads torch, and logging is set up before that
        from fastmoco.runs.wandb_board import WandbBoard

        run.mkdir(parents=True, exist_ok=True)
        write_whole(run / "config.json", (json.dumps(config, indent=2) + "\n").encode())
        self._metrics = run / "metrics.jsonl"
        self._rewind(step)
        self._file = self._metrics.open("a", encoding="utf-8")
        self._boards: list[Board | WandbBoard] = [WandbBoard(run, config)] if config.get("wandb") else []
        self._boards.append(Board(run / "tensorboard", config, step))
        self._bar = Bar("train", pace, "step {:,} of {:,}", say=None)  # the log has lines of its own
        self._shown = ExitStack()
        self._shown.enter_context(self._bar.shown())

    def rewind(self, step: int) -> None:
        """Drop the records of the steps after `step`."""
        self._file.close()
        self._rewind(step)
        self._file = self._metrics.open("a", encoding="utf-8")
        for board in self._boards:
            board.rewind(step)
        self._bar.reach(step)

    def _rewind(self, step: int) -> None:
        if not self._metrics.exists():
            return
        kept = []
        for number, line in enumerate(self._metrics.read_text(encoding="utf-8").splitlines(), 1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                log.warning("dropped line %d of %s: it is incomplete, as after a crash", number, self._metrics)
                continue
            if record["step"] <= step:
                kept.append(line + "\n")
        write_whole(self._metrics, "".join(kept).encode())

    def advance(self, step: int) -> None:
        """Move the progress bar to `step` steps done."""
        self._bar.reach(step)

    def write(self, record: dict[str, Any], line: str) -> None:
        """Record figures.

        Args:
            record: figures with their `step`.
            line: the same as text.
        """
        self._file.write(json.dumps(record) + "\n")
        # a killed run keeps its lines, and `tail -f` shows them
        self._file.flush()
        for board in self._boards:
            board.write(record)
        pace = self._bar.pace
        self._bar.reach(pace.done, line)
        left = pace.left()
        time_left = "time left not known yet" if left is None else f"{duration(left)} left"
        log.info("step %d/%d  %s  %s", record["step"], pace.total, time_left, line)

    def show(self, name: str, picture: Path, step: int) -> None:
        """Show a PNG or JPEG of the run in TensorBoard and Weights & Biases."""
        for board in self._boards:
            board.show(name, picture, step)

    def note(self, record: dict[str, Any]) -> None:
        """Record what is no figure, with its `step`, in metrics.jsonl alone."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Flush and close the files."""
        self._shown.close()
        self._file.close()
        for board in self._boards:
            board.close()
