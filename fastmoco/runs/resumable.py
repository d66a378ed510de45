"""What a run does to be continued: it takes the newest sound checkpoint, here or from the copy."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastmoco.checkpoints import checkpoint
from fastmoco.checkpoints.checkpoint import Changed, CheckpointError
from fastmoco.flags import flag, named
from fastmoco.ranks.world import from_main
from fastmoco.runs import copying, status
from fastmoco.runs.choosing import load_chosen
from fastmoco.runs.copier import Copier
from fastmoco.runs.progress import waiting
from fastmoco.runs.saved import Saved
from shards.words import counted

log = logging.getLogger(__name__)


class Resumable(Saved):
    """A run that can be stopped and continued, on one rank; see `Saved`.

    Attributes:
        anew: what to give for a new run, for messages.
        refuses_copy: the flag by which a new run is asked for; None where the copy's is to be continued.
        owed: whether the evaluation of this step is to be done; a stop may come before its end.
        agreed_step: the step after which all ranks were last seen to hold the same state.
    """

    anew = "another --out"
    refuses_copy: str | None = None
    owed, agreed_step = False, 0
    _changed: Mapping[str, tuple[Any, Any]] = {}  # settings that differ from those of the steps done: old and new value

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
            self._copier = Copier(self.folder, place, self._keeping())
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
        if self.at_end and not self.owed:
            self.finish_saving()
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
