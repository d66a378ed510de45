"""What a run does to keep its state: when a checkpoint is due, writing it in the background, and its copy."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

from fastmoco.checkpoints import checkpoint, saving
from fastmoco.checkpoints.checkpoint import CheckpointError
from fastmoco.checkpoints.finite import first_not_finite
from fastmoco.checkpoints.saving import Keeping, Saver
from fastmoco.flags import require
from fastmoco.ranks.heartbeat import WAITS
from fastmoco.ranks.world import World, from_main
from fastmoco.runs import status
from fastmoco.runs.copier import Copier
from fastmoco.runs.disk import Disk
from fastmoco.runs.errors import NotFinite
from fastmoco.runs.progress import waiting
from fastmoco.runs.signals import stop_is_asked
from fastmoco.settings import CheckpointSettings
from shards.errors import UserError

log = logging.getLogger(__name__)

_WHAT = "the checkpoint"
_STOP_COPY_SECONDS, _END_COPY_SECONDS = 15.0, 1800.0
"""Seconds for which a stop, and the end of a run, wait for the copy of the newest checkpoint."""
_MEET_EVERY = 1.0
"""Seconds between two exchanges of the ranks while they wait for it."""
_LAST_SECONDS = 5.0
"""Seconds for which a stop tries to save: torchrun and clusters leave it 30."""


class Saved(ABC):
    """A run whose state is saved, on one rank. Rank 0 alone writes.

    Args:
        here: this rank.
        folder: the run folder; None for a run whose folder is chosen after it is made.
        steps_per_epoch: steps of an epoch, equal on all ranks.
        total_steps: length of the run.
        saving: when checkpoints are written, and which are kept.

    Attributes:
        layout: format of the run's checkpoints.
        may_diverge: whether a state with values that are not finite is saved.
        step: number of steps done.
    """

    layout: ClassVar[str]
    may_diverge: ClassVar[bool] = False

    def __init__(
        self, here: World, folder: Path | None, steps_per_epoch: int, total_steps: int, saving: CheckpointSettings
    ) -> None:
        self.here, self._folder = here, folder
        require(
            total_steps <= checkpoint.MOST_STEPS,
            f"the run has {total_steps:,} steps; at most {checkpoint.MOST_STEPS:,} are possible, so give fewer",
        )
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        self.step = 0
        self.saving, self._saver, self.disk = saving, Saver(self._write), Disk(saving.disk_patience)
        self._copier: Copier | None = None
        self._saved_at, self._saved_step = time.monotonic(), 0
        self._refused: NotFinite | None = None  # why the last state was not saved

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The run's checkpoint: tensors and plain values, with `progress` {step}."""

    def gather_state(self) -> None:  # noqa: B027 (most runs need nothing of other ranks)
        """Collect what the checkpoint needs of other ranks. All ranks call it before every checkpoint."""

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

    def saves_at_step(self, every: int) -> bool:
        """Whether all ranks save the state at this step.

        Args:
            every: steps between checkpoints; 0 for those that are due by time alone.
        """
        kept = self.saving.keep_every * self.steps_per_epoch
        return self.at_end or any(steps and self.step % steps == 0 for steps in (every, kept))

    def due_by_time(self) -> bool:
        """Whether rank 0 is to save by time, or once more where the last try failed.

        A checkpoint that is still being written then is not waited for: the next one is due once it is complete.
        """
        self._fetch()
        if self._saver.busy or self.step == self._saved_step:
            return False
        if self.disk.is_failing(_WHAT):
            return self.disk.is_due(_WHAT)
        seconds = 60 * self.saving.minutes_between_checkpoints
        return seconds > 0 and time.monotonic() - self._saved_at > seconds

    def start_saving(self) -> None:
        """Write the state in the background; the steps wait for its copy alone.

        A checkpoint that is still being written is waited for, so that each that is due at a step is of this step.
        """
        # rank 0's state is everyone's but for BatchNorm's running statistics, which training does not read
        if not self.here.is_main:
            return
        self._fetch(wait=True)
        self._saved_at = time.monotonic()
        self._saver.start({"format": self.layout, **self.state()})

    def save_unsaved(self, patiently: bool = False) -> None:
        """Save the state, and wait for it, unless that of the last step is saved.

        Args:
            patiently: try for --disk-patience where it cannot be written, though no longer than other ranks wait; else
                for a few seconds, as a stop must not take longer.

        Raises:
            DiskError: it cannot be written.
        """
        # half of what the others wait: the rest is for the try that follows, and for its message
        most = None if self.here.size == 1 else self.here.timeout.total_seconds() / 2
        self._fetch(wait=True)
        while self.here.is_main and self.step != self._saved_step:
            self.start_saving()
            self._fetch(wait=True)
            if self._refused:
                raise self._refused
            if self.step != self._saved_step:
                self.disk.wait(most if patiently else _LAST_SECONDS)

    @contextmanager
    def saving_ended(self) -> Iterator[None]:
        """However the block ends, wait for the checkpoint that is being written, and for its copy."""
        try:
            yield
        except BaseException:
            self.end_saving()
            raise
        if self.at_end:
            self.finish_saving()
        else:
            self.end_saving()

    def await_saving(self) -> None:
        """Wait for the checkpoint that is being written; why it could not be written is logged."""
        try:
            self._fetch(wait=True)
        except (UserError, OSError) as error:
            log.error("%s", error)

    def end_saving(self) -> None:
        """Wait for the checkpoint that is being written, and for seconds for its copy; no later one is copied."""
        self.await_saving()
        if self._copier:
            with self._copying():
                self._copier.close(_STOP_COPY_SECONDS)
            self._copier = None

    def finish_saving(self) -> None:
        """`end_saving` after the last step, with a longer wait for the copy. All ranks call it."""
        self.await_saving()
        if self.saving.checkpoint_copy is None:
            return
        began = time.monotonic()

        def copied() -> bool:
            if self._copier is None:
                return True
            waited = time.monotonic() - began
            patience = _STOP_COPY_SECONDS if stop_is_asked() else _END_COPY_SECONDS
            self._copier.hurry()
            if not self._copier.wait(_MEET_EVERY) and waited < patience:
                return False
            self._copier.close(0.0, waited)
            self._copier = None
            return True

        with self._copying():
            # the ranks meet meanwhile: a wait for rank 0 must not last longer than --rank-timeout
            while not from_main(self.here, copied):
                if self.here.heartbeat:
                    self.here.heartbeat.does(WAITS, self.step)

    def _copying(self) -> AbstractContextManager[None]:
        return waiting(f"copying the checkpoint to {self.saving.checkpoint_copy}")

    def _fetch(self, wait: bool = False) -> None:
        """Take note of the checkpoint that was written meanwhile, or could not be."""
        try:
            with waiting(f"writing a checkpoint to {self.checkpoints}") if wait else nullcontext():
                path = self._saver.result(wait)
        except OSError as error:
            self.disk.failed(_WHAT, error)
            return
        except NotFinite as error:
            self._refused = error
            self.refused(error)
            return
        if path is None:
            return
        self.disk.succeeded(_WHAT)
        self._saved_step, self._refused = checkpoint.step_of(path), None
        log.info("wrote %s", path)
        status.update(last_checkpoint=str(path))
        if self._copier:
            self._copier.copy(path)
        self.saved(path)

    def _write(self, state: dict[str, Any]) -> Path:
        """Write a state; it runs in the background."""
        name = None if self.may_diverge else first_not_finite(state)
        if name is not None:
            step = state["progress"]["step"]
            raise NotFinite(f"{name} is infinite or not a number after step {step}, which is therefore not saved")
        return saving.save(self.checkpoints, state, self._keeping())

    def _keeping(self) -> Keeping:
        most, every = self.saving.checkpoint_space, self.saving.keep_every * self.steps_per_epoch
        return Keeping(self.saving.keep_checkpoints, every, None if most is None else most * 1e9)

    def refused(self, error: NotFinite) -> None:
        """Called on rank 0 where a state was not saved, as it is not finite; raises `error` unless overridden."""
        raise error

    def last_sound(self) -> tuple[Path, int] | None:
        """Path and step of the newest checkpoint that is whole and finite; None without one. All ranks call it."""

        def find() -> tuple[Path, int] | None:
            try:
                found = checkpoint.newest(self.checkpoints, self.layout)
            except CheckpointError:  # it has logged what is wrong with each
                return None
            return None if found is None else (found[0], found[1]["progress"]["step"])

        return from_main(self.here, find)

    def saved(self, path: Path) -> None:  # noqa: B027 (most runs have nobody to tell)
        """Called on rank 0 between two steps once a checkpoint is complete; later steps may be done by then."""
