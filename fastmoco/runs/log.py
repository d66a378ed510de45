"""Records of a run, written by rank 0: metrics.jsonl, TensorBoard, log lines, and a progress bar in a terminal."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from shards.storage.files import write_whole

log = logging.getLogger(__name__)

console = Console(stderr=True)


def set_up_logging() -> None:
    """Log to stderr: formatted by rich in a terminal, else as plain dated lines."""
    if console.is_terminal:
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
        total_steps: length of the run, for the progress bar.
    """

    def __init__(self, run: Path, config: dict[str, Any], step: int, total_steps: int) -> None:
        run.mkdir(parents=True, exist_ok=True)
        write_whole(run / "config.json", (json.dumps(config, indent=2) + "\n").encode())
        self._metrics = run / "metrics.jsonl"
        self._rewind(step)
        self._file = self._metrics.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        self._live = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[line]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._live.add_task("train", total=total_steps, completed=step, line="")
        self._live.start()

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
        self._live.update(self._task, completed=step)

    def write(self, record: dict[str, Any], line: str) -> None:
        """Record figures.

        Args:
            record: figures with their `step`; all but step and epoch go to TensorBoard too.
            line: the same as text.
        """
        self._file.write(json.dumps(record) + "\n")
        # a killed run keeps its lines, and `tail -f` shows them
        self._file.flush()
        for name, value in record.items():
            if name not in ("step", "epoch") and value is not None:
                self._board.add_scalar(name, value, record["step"])
        self._live.update(self._task, line=line)
        log.info("step %d  %s", record["step"], line)

    def close(self) -> None:
        """Flush and close the files."""
        self._live.stop()
        self._file.close()
        self._board.close()
