"""What a run does with its checkpoints: it continues from the newest one, and writes the next."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from fastmoco.flags import flag, named, require
from fastmoco.ranks.world import World
from fastmoco.runs import checkpoint, saving, status
from fastmoco.runs.checkpoint import Changed, CheckpointError
from fastmoco.runs.progress import waiting

log = logging.getLogger(__name__)


class Resumable(ABC):
    """A run that can be stopped and continued, on one rank. Rank 0 alone writes.

    Args:
        here: this rank.
        folder: the run folder; None for a run whose folder is chosen after it is made.
        total_steps: length of the run.
        keep: number of checkpoints to keep.

    Attributes:
        layout: format of the run's checkpoints.
        anew: what to give for a new run, for messages.
        step: number of steps done.
    """

    layout: ClassVar[str]
    anew = "another --out"

    def __init__(self, here: World, folder: Path | None, total_steps: int, keep: int) -> None:
        self.here, self._folder, self.keep = here, folder, keep
        require(
            total_steps <= checkpoint.MOST_STEPS,
            f"the run has {total_steps:,} steps; at most {checkpoint.MOST_STEPS:,} are possible, so give fewer",
        )
        self.total_steps = total_steps
        self.step = 0
        self._changed: Changed = {}  # settings that differ from those of the steps done: old and new value
        self._saved_at, self._saved_step = time.monotonic(), 0

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The run's checkpoint: tensors and plain values, with `progress` {step}."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> None:
        """Load what `state` returned."""

    @abstractmethod
    def check_resumable(self, path: Path, state: dict[str, Any]) -> Changed | None:
        """Compare the settings with those of a checkpoint.

        Returns:
            The settings that differ, of those that may, by name: old and new value.

        Raises:
            CheckpointError: continuing from `state`, read from `path`, would not continue the same run.
        """

    def gather_state(self) -> None:  # noqa: B027 (most runs need nothing of other ranks)
        """Collect what the checkpoint needs of other ranks. All ranks call it before a checkpoint that all know of.

        It is not called before a checkpoint that is due by time, of which rank 0 alone knows.
        """

    @property
    def folder(self) -> Path:
        """The run folder."""
        assert self._folder is not None, "no run folder has been chosen"
        return self._folder

    @folder.setter
    def folder(self, folder: Path) -> None:
        self._folder = folder

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return self.folder / "checkpoints"

    @property
    def at_end(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.total_steps

    def resume(self, start: Path | None = None) -> bool:
        """Continue from the newest readable checkpoint of the run folder.

        Args:
            start: checkpoint to continue from where the run folder has none.

        Returns:
            Whether there was a checkpoint.

        Raises:
            CheckpointError: the checkpoints are damaged, or belong to another run.
        """
        with waiting(f"reading the newest checkpoint of {self.folder}"):
            found = checkpoint.newest(self.checkpoints, self.layout)
        if found is None and start is not None:
            with named("--resume"), waiting(f"reading {start}"):
                start = checkpoint.newest_of(start)
                found = start, checkpoint.load(start, self.layout)
        if found is None:
            return False
        path, state = found
        with checkpoint.fitting(path):
            self._changed = self.check_resumable(path, state) or {}
            self.load_state(state)
            self.step = self._saved_step = state["progress"]["step"]
        status.update(step=self.step, total_steps=self.total_steps, last_checkpoint=str(path))
        self._say_what_continues(path, self.folder if path.parent == self.checkpoints else path)
        return True

    def _say_what_continues(self, path: Path, place: Path) -> None:
        done = f"{self.step} of {self.total_steps} steps are done"
        changed = "; ".join(checkpoint.in_words({flag(name): pair for name, pair in self._changed.items()}))
        if self.at_end and changed:
            raise CheckpointError(
                f"{place} is finished, with other settings: {changed}; {done}. "
                f"To train with these settings, give {self.anew}"
            )
        if not self.here.is_main:
            return
        if self.at_end:
            log.info("%s is finished: %s; for a new run, give %s", place, done, self.anew)
            return
        log.info("continuing from %s: %s", path, done)
        if changed:
            log.warning("settings changed at step %d: %s; for a new run, give %s", self.step, changed, self.anew)

    def _save(self) -> None:
        # rank 0's state is everyone's but for BatchNorm's running statistics, which training does not read
        if not self.here.is_main:
            return
        with waiting(f"writing a checkpoint to {self.checkpoints}"):
            path = saving.save(self.checkpoints, {"format": self.layout, **self.state()}, self.keep)
        self._saved_at, self._saved_step = time.monotonic(), self.step
        log.info("wrote %s", path)
        status.update(last_checkpoint=str(path))
        self.saved(path)

    def save_unsaved(self) -> None:
        """Save the state on the way out of an error, unless the last step's is saved."""
        if self.step > self._saved_step:
            self._save()

    def saved(self, path: Path) -> None:  # noqa: B027 (most runs have nobody to tell)
        """Called on rank 0 when a checkpoint is complete."""
