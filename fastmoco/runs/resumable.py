"""What a run does with its checkpoints: it continues from the newest one, and writes the next."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

from fastmoco.flags import flag, named, require
from fastmoco.ranks.world import World, from_main
from fastmoco.runs import checkpoint, copying, saving, status
from fastmoco.runs.checkpoint import Changed, CheckpointError
from fastmoco.runs.choosing import load_chosen
from fastmoco.runs.disk import Disk
from fastmoco.runs.errors import NotFinite
from fastmoco.runs.finite import first_not_finite
from fastmoco.runs.progress import waiting
from fastmoco.runs.saving import Keeping, Saver
from fastmoco.settings import CheckpointSettings
from shards.errors import UserError
from shards.words import counted

log = logging.getLogger(__name__)

_WHAT = "the checkpoint"
_STOP_COPY_SECONDS, _END_COPY_SECONDS = 15.0, 1800.0
"""Seconds for which a stop, and the end of a run, wait for the copy of the newest checkpoint."""
_LAST_SECONDS = 5.0
"""Seconds for which a stop tries to save: torchrun and clusters leave it 30."""


class Resumable(ABC):
    """A run that can be stopped and continued, on one rank. Rank 0 alone writes.

    Args:
        here: this rank.
        folder: the run folder; None for a run whose folder is chosen after it is made.
        steps_per_epoch: steps of an epoch, equal on all ranks.
        total_steps: length of the run.
        saving: when checkpoints are written, and which are kept.

    Attributes:
        layout: format of the run's checkpoints.
        may_diverge: whether a state with values that are not finite is saved.
        anew: what to give for a new run, for messages.
        step: number of steps done.
        agreed_step: the step after which all ranks were last seen to hold the same state.
    """

    layout: ClassVar[str]
    may_diverge: ClassVar[bool] = False
    anew = "another --out"

    def __init__(
        self, here: World, folder: Path | None, steps_per_epoch: int, total_steps: int, saving: CheckpointSettings
    ) -> None:
        self.here, self._folder = here, folder
        require(
            total_steps <= checkpoint.MOST_STEPS,
            f"the run has {total_steps:,} steps; at most {checkpoint.MOST_STEPS:,} are possible, so give fewer",
        )
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        self.step = self.agreed_step = 0
        self.saving, self._saver, self.disk = saving, Saver(self._write), Disk(saving.disk_patience)
        self.refuses_copy: str | None = None  # the flag by which a new run is asked for
        self._copier: copying.Copier | None = None
        self._changed: Changed = {}  # settings that differ from those of the steps done: old and new value
        self._saved_at, self._saved_step = time.monotonic(), 0
        self._refused: NotFinite | None = None  # why the last state was not saved

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

    def take_copy(self) -> None:
        """Bring a newer checkpoint of --checkpoint-copy into the run folder. All ranks call it.

        Raises:
            ConfigError, CheckpointError: the copy is of another run, or cannot be used.
        """
        place = self.saving.checkpoint_copy
        if place is None:
            return

        def take() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with waiting(f"looking for a newer checkpoint in {place}"):
                copying.prepare(place, self.folder, self.layout, self.check_resumable, self.refuses_copy)

        from_main(self.here, take)
        if self.here.is_main:
            self._copier = copying.Copier(self.folder, place, self._keeping())
            for path in checkpoint.found(self.checkpoints)[:1]:
                self._copier.copy(path)

    def resume(self, start: Path | None = None) -> bool:
        """Continue from the newest checkpoint of the run folder that holds the state of this run. All ranks call it.

        Args:
            start: checkpoint to continue from where the run folder has none.

        Returns:
            Whether there was a checkpoint.

        Raises:
            CheckpointError: the checkpoints are damaged, or belong to another run.
            TrainingError: not all ranks read the same checkpoint.
        """
        self.take_copy()

        def found() -> Iterator[tuple[Path, dict[str, Any]]]:
            yield from checkpoint.sound(self.checkpoints, self.layout, finite=not self.may_diverge)
            if start is not None:
                with named("--resume"):
                    path = checkpoint.newest_of(start)
                    yield path, checkpoint.load(path, self.layout)

        def load(path: Path, state: dict[str, Any]) -> None:
            self._changed = self.check_resumable(path, state) or {}
            self.load_state(state)
            self.step = self._saved_step = checkpoint.step_in(state)

        with waiting(f"reading the newest checkpoint of {self.folder}"):
            path = load_chosen(self.here, found, self.layout, load)
        if path is None:
            return False
        self.agreed_step = self.step
        status.update(step=self.step, total_steps=self.total_steps, last_checkpoint=str(path))
        self._say_what_continues(path, self.folder if path.parent == self.checkpoints else path)
        if self.at_end:
            self.end_saving()
        return True

    def load_again(self, path: Path) -> None:
        """Load a checkpoint of this run, which rank 0 reads and all agree on. All ranks call it.

        Raises:
            CheckpointError: it cannot be loaded.
            TrainingError: not all ranks read the same bytes.
        """

        def found() -> Iterator[tuple[Path, dict[str, Any]]]:
            yield path, checkpoint.load(path, self.layout)

        load_chosen(self.here, found, self.layout, lambda _, state: self.load_state(state))
        self.agreed_step = checkpoint.step_of(path)

    def set_unsure_aside(self) -> str:
        """Rename the checkpoints of later steps than `agreed_step`; all ranks call it.

        Returns:
            What became of them, and from where the run continues.
        """

        def act() -> str:
            self.end_saving()  # it may be of such a step
            done = f"all ranks agreed last after step {self.agreed_step}"
            try:
                moved = checkpoint.set_aside(self.checkpoints, self.agreed_step)
            except OSError as error:
                return f"{done}: delete the checkpoints of later steps, which cannot be renamed ({error})"
            if moved:
                done += f", so {counted(len(moved), 'later checkpoint')} ({moved[-1].name}, …) will not be used"
            if (place := self.saving.checkpoint_copy) is not None:
                try:
                    copying.forget(place, self.agreed_step)
                except OSError as error:
                    done += f"; delete those in {place}, too, which could not be done ({error})"
            left = checkpoint.found(self.checkpoints)
            where = f"continues from {left[0]}" if left else "begins anew, as no checkpoint is left"
            return f"{done}, and the same command {where}"

        return from_main(self.here, act)

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
        unsure = [one for one in checkpoint.unsure(self.checkpoints) if checkpoint.step_of(one) > self.step]
        if unsure:
            log.warning(
                "%s and later are not used: they were written after the ranks last held the same model", unsure[0]
            )
        if changed:
            log.warning("settings changed at step %d: %s; for a new run, give %s", self.step, changed, self.anew)

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
            patiently: try for --disk-patience where it cannot be written; else for a few seconds, as a stop must not
                take longer.

        Raises:
            DiskError: it cannot be written.
        """
        self._fetch(wait=True)
        while self.here.is_main and self.step != self._saved_step:
            self.start_saving()
            self._fetch(wait=True)
            if self._refused:
                raise self._refused
            if self.step != self._saved_step:
                self.disk.wait(None if patiently else _LAST_SECONDS)

    def save_after_error(self) -> None:
        """`save_unsaved` on the way out of an error, which counts more than one of the saving."""
        try:
            self.save_unsaved()
        except (UserError, OSError) as error:
            log.error("the state after step %d is not saved: %s", self.step, error)

    @contextmanager
    def saving_ended(self) -> Iterator[None]:
        """However the block ends, wait for the checkpoint that is being written, and for its copy."""
        try:
            yield
        finally:
            self.end_saving()

    def end_saving(self) -> None:
        """Wait for the checkpoint that is being written, and within bounds for its copy."""
        try:
            self._fetch(wait=True)
        except (UserError, OSError) as error:
            log.error("%s", error)
        if self._copier:
            with waiting(f"copying the checkpoint to {self.saving.checkpoint_copy}"):
                self._copier.close(_END_COPY_SECONDS if self.at_end else _STOP_COPY_SECONDS)
            self._copier = None

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
