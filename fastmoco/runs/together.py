"""Steps that all ranks make together: before each they agree on whether to make it, to stop, or to save first."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import NoReturn, TypeVar

from fastmoco.checkpoints import checkpoint
from fastmoco.ranks.endings import PeerError
from fastmoco.ranks.vote import Ballot, Votes
from fastmoco.runs.disk import DiskError
from fastmoco.runs.errors import Stopped, Unsaved
from fastmoco.runs.resumable import Resumable
from fastmoco.runs.signals import StopRequest, agreed_by, stop_signals
from fastmoco.runs.warnings import warn
from fastmoco.spans import span
from shards.errors import UserError
from shards.words import duration

log = logging.getLogger(__name__)

Batch = TypeVar("Batch")
_OWES = -1  # in place of the saved step: the last step's state was saved while it owed an evaluation that is done now


class Together(Resumable):
    """A run of equal steps on all ranks; see `Resumable`.

    Attributes:
        waited: seconds for which the step waited for its images.
        skipped: batches of the data that were passed without a step.
    """

    waited, skipped = 0.0, 0
    _votes: Votes | None = None
    _stop: StopRequest  # of this rank, while the run is open
    _early = _save_wanted = _leaving = False
    _gathered = False  # in this step
    _failure: Exception | None = None  # of the user's functions, until all ranks agree on it
    _fetching_since: float | None = None
    _minutes_waited = 0

    @property
    def position(self) -> int:
        """Batches of the data that are passed: those of the steps done, and those that were skipped."""
        return self.step + self.skipped

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Let signals stop the run while the block runs."""
        self._votes = Votes(self.here)
        if self.here.heartbeat:
            self.here.heartbeat.say = partial(warn, "waiting_for_rank")
        with stop_signals(self._lost, self._say_wait) as self._stop, agreed_by(self._stop, self.agree):
            yield

    def _lost(self) -> str:
        if self._saved_step == _OWES:
            return "the evaluation of that step is lost"
        return f"the steps after {self._saved_step} are lost"

    def _say_wait(self) -> None:
        """Log once a minute that this rank still waits for its images."""
        began, minutes = self._fetching_since, self._minutes_waited
        if began is not None and time.perf_counter() - began > 60 * (minutes + 1):
            self._minutes_waited += 1
            whose = f"rank {self.here.rank} has" if self.here.size > 1 else "the run has"
            log.warning("%s waited %s for images after step %d", whose, duration(60 * (minutes + 1)), self.step)

    @contextmanager
    def holding_errors(self) -> Iterator[None]:
        """Hold an error of the user's function that the block calls, and raise it when the ranks agree next.

        It may be this rank's alone: the others are to make no exchange of this step without it.
        """
        try:
            yield
        except Exception as error:
            self._failure = self._failure or error

    def stop_early(self) -> None:
        """End the run before its next step, without an error; one rank's call ends it on all."""
        self._early = True

    def batches(self, epoch: Callable[[int, int], Iterator[Batch]]) -> Iterator[Batch]:
        """The batches of the remaining steps, each once all ranks have one; `advance` is called once for each.

        Args:
            epoch: returns the batches of an epoch, given its number and the step within it to start from.

        Raises:
            Stopped: a rank was asked to stop, also while it waited for its images; the state is saved.
            Exception: what `epoch` raises, or `holding_errors` holds; the state after the last step is saved.
            PeerError: it was raised on another rank.
        """
        return self.agreed(self._of_epochs(epoch))

    def _of_epochs(self, epoch: Callable[[int, int], Iterator[Batch]]) -> Iterator[Batch]:
        while not self.at_end:
            number, first = divmod(self.position, self.steps_per_epoch)
            yield from islice(epoch(number, first), min(self.steps_per_epoch - first, self.total_steps - self.step))

    def agreed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of the remaining steps, as `batches` gives them, of all of them in one."""
        coming = self.timed(batches)
        while not self.at_end:
            yield self._next(coming)
        self._early = False  # nothing is left to be stopped
        self.agree()  # on a signal that came with the last step

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; a run may measure the wait for each."""
        return iter(batches)

    def _next(self, batches: Iterator[Batch]) -> Batch:
        if self._failure is not None:
            self.agree()  # without a wait for images
        began = self._fetching_since = time.perf_counter()
        try:
            # at once: torchrun leaves a rank 30 seconds, and a store may be out of reach for minutes
            with self._stop.acting(self._agree_at_once):
                batch = next(batches)
        except Exception:
            if not self._leaving:
                self.agree(failed=True)
            raise
        finally:
            self._fetching_since, self._minutes_waited = None, 0
        self.waited = time.perf_counter() - began
        with span("agreement"):
            self.agree()
        self._gathered = False
        return batch

    def _agree_at_once(self) -> None:
        self._leaving = True
        self.agree()

    def agree(self, failed: bool = False) -> None:
        """Agree with all ranks on whether to go on; all call it at the same steps.

        Args:
            failed: this rank cannot go on; its caller raises the cause.

        Raises:
            Stopped: a rank was asked to stop, and the state is saved.
            Unsaved: the same, but the state could not be saved; on rank 0.
            PeerError: another rank has failed, or rank 0 could not save the state.
            Exception: what `holding_errors` holds.
        """
        assert self._votes is not None, "the run is not open"
        failing = failed or self._failure is not None
        wanted = Ballot(self._early, self._stop.number, self.here.rank if failing else -1, self._save_wanted)
        agreed, self._save_wanted = self._votes(wanted, self.step), False
        if agreed.leaves or agreed.save:
            self._gather()
        if agreed.leaves:
            unsaved = self._saved_to_leave()
            # once more: torchrun ends all ranks once one has failed, and rank 0 must have written the checkpoint
            lost = self._votes(Ballot(early=unsaved is not None), self.step).early
            if failed or self._failure is not None:
                if unsaved is not None:
                    log.error("%s", unsaved)
                if self._failure is not None:
                    raise self._failure
                return
            self._leave(agreed, unsaved, lost)
        elif agreed.save:
            self.start_saving()

    def _saved_to_leave(self) -> str | None:
        """Save the state on rank 0; what is lost and why, if that cannot be done."""
        try:
            self.save_unsaved()
        except (UserError, OSError) as error:
            return f"the state after step {self.step} could not be saved: {error}; {self._lost()}, {self._left()}"
        return None

    def _left(self) -> str:
        """What a run continues from that ends without a checkpoint."""
        paths = checkpoint.found(self.checkpoints)
        return f"and {paths[0]} is the last checkpoint" if paths else "and there is no checkpoint"

    def _leave(self, agreed: Ballot, unsaved: str | None, lost: bool) -> NoReturn:
        saved = f"the state after step {self.step} is {'not saved' if lost else 'saved'}"
        if agreed.failed >= 0:
            if unsaved is not None:
                log.error("%s", unsaved)
            raise PeerError(
                f"rank {agreed.failed} has failed; {saved}. Fix the error that it printed, here or on its node, and "
                "run the same command again"
            )
        if agreed.signal:
            self._stop.await_agent()
        cause = f"{agreed.cause}: " if agreed.signal else ""
        if unsaved is not None:
            raise Unsaved(f"{cause}{unsaved}")
        if lost:
            raise PeerError(f"{cause}{saved}, for the reason that rank 0 printed")
        again = f"{cause}stopped after step {self.step}; the same command continues from there"
        raise Stopped(again, agreed.signal)

    def save_if_due(self, every: int) -> None:
        """Save the state where that is due and at the end of the run; what is due by time, before the next step.

        Args:
            every: steps between checkpoints; 0 for those that are due by time alone.

        Raises:
            DiskError: it cannot be written, for longer than --disk-patience.
        """
        try:
            self.disk.check()
            self._save_if_due(every)
        except DiskError:
            self.agree(failed=True)  # the other ranks agree next
            raise

    def _save_if_due(self, every: int) -> None:
        if self.at_end:
            self._gather()
            self.save_unsaved(patiently=True)
        elif self.saves_at_step(every):
            self._gather()
            self.start_saving()
        elif self.here.is_main and self.due_by_time():
            self._save_wanted = self.here.size > 1  # the others are to know of it
            if not self._save_wanted:
                self._gather()
                self.start_saving()

    def save_once_more(self) -> None:
        """Save the state of a step that was saved already: the evaluation that it owed is done. All ranks call it.

        Where it cannot be written, the steps go on, as with any checkpoint. At the end of the run none are left.

        Raises:
            DiskError: as `save_if_due`.
        """
        if self.at_end:
            self._saved_step = _OWES
            self.save_if_due(0)
        else:
            self._gather()
            self.start_saving()

    def _gather(self) -> None:
        """Collect the state of all ranks, once for each step."""
        self.settle()
        # not by the saved step, which rank 0 alone knows where it cannot write
        if not self._gathered:
            self.gather_state()
            self._gathered = True

    def settle(self) -> None:
        """Finish what is still open of the last step before the state is saved. All ranks call it."""
