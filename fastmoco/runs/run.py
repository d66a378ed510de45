"""The skeleton of a run that can be stopped and continued: pretraining, the linear probe, detection training.

A subclass writes its loop as: resume, open, and for each batch one step, `advance`, a log line, `save_if_due`.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist

from fastmoco.devices import to_host
from fastmoco.flags import flag, named, require
from fastmoco.ranks.world import World
from fastmoco.runs import checkpoint
from fastmoco.runs.checkpoint import Changed, CheckpointError
from fastmoco.runs.environment import environment
from fastmoco.runs.errors import Stopped
from fastmoco.runs.log import RunLog
from fastmoco.runs.progress import waiting
from fastmoco.runs.signals import on_stop_signal
from shards.errors import ShardSetError
from shards.progress import Pace
from shards.words import counted, duration

log = logging.getLogger(__name__)

Batch = TypeVar("Batch")
SLOW_STEPS, ESTIMATE_AFTER = 3, 10
"""Steps that are not measured, as they compile and fill caches; steps after which the run's length is estimated."""
CHECKPOINT_SECONDS = 600  # what a crash may cost where no number of steps is set


class Run(ABC):
    """One run on one rank. All ranks call its methods at the same steps; rank 0 alone writes.

    Args:
        here: this rank.
        folder: the run folder; None for a run whose folder is chosen after it is made.
        steps_per_epoch: steps of an epoch, equal on all ranks.
        total_steps: length of the run.
        keep: number of checkpoints to keep.
        batch_size: images of a step, on all ranks together.
        evaluate_every: steps between evaluations; 0 for none. The last step is followed by one, too.

    Attributes:
        layout: format of the run's checkpoints.
        evaluation: what an evaluation is called in messages.
        anew: what to give for a new run, for messages.
        step: number of steps done.
        pace: seconds per step, and the time left.
    """

    layout: ClassVar[str]
    evaluation: ClassVar[str] = "evaluation"
    anew = "another --out"

    def __init__(
        self,
        here: World,
        folder: Path | None,
        steps_per_epoch: int,
        total_steps: int,
        keep: int,
        *,
        batch_size: int,
        evaluate_every: int = 0,
    ) -> None:
        self.here, self._folder, self.keep = here, folder, keep
        require(
            total_steps <= checkpoint.MOST_STEPS,
            f"the run has {total_steps:,} steps; at most {checkpoint.MOST_STEPS:,} are possible, so give fewer",
        )
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        self._batch_size, self._evaluate_every = batch_size, evaluate_every
        self.pace = Pace(total_steps)
        self.step = 0
        self._records: RunLog | None = None
        self._changed: Changed = {}  # settings that differ from those of the steps done: old and new value
        self._saved_at, self._saved_step = time.monotonic(), 0
        self._stop_asked = False  # on this rank
        self._stopping = False  # agreed by all ranks

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
    def epochs_done(self) -> float:
        """Epochs done, with the fraction of the current one."""
        return self.step / self.steps_per_epoch

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

    @contextmanager
    def opened(self, config: dict[str, Any]) -> Iterator[None]:
        """Open the run's records on rank 0, and let SIGTERM and SIGINT stop the run.

        Args:
            config: the settings in plain values, for config.json.
        """
        self.pace = Pace(self.total_steps, self.step, warm_up=SLOW_STEPS, pause_every=self._evaluate_every)
        self._estimate_at = self.step + ESTIMATE_AFTER
        if self.here.is_main:
            length = {"ranks": self.here.size, "steps_per_epoch": self.steps_per_epoch, "total_steps": self.total_steps}
            recorded = {**config, "environment": environment() | length}
            self._records = RunLog(self.folder, recorded, self.step, self.pace)
            if self._changed:
                self._records.note({**self._place(self.step), "changed": self._changed})
        try:
            with on_stop_signal(self._ask_to_stop):
                yield
        finally:
            if self._records:
                self._records.close()

    def _ask_to_stop(self) -> None:
        # several ranks agree with the next figures: a rank that left alone would leave the others waiting for it
        self._stop_asked = True
        self._stopping = self.here.size == 1

    def advance(self) -> None:
        """Count one step."""
        self.step += 1
        if self._records:
            self._records.advance(self.step)
            # of a GPU's steps the host may be one ahead, which hardly changes the mean of several
            if self.step == self._estimate_at and not self.at_end:
                log.info("%s", self.estimate())

    def evaluating(self) -> AbstractContextManager[None]:
        """Time a block as an evaluation, and not as part of a step."""
        return self.pace.paused()

    def estimate(self) -> str:
        """The time that the rest of the run takes, by the steps so far, and what that covers."""
        each, left, pace = self.pace.each(), self.pace.left(), self.pace
        assert each is not None and left is not None  # of more than two steps
        rate = self._batch_size / each
        text = f"about {duration(left)} left: {counted(self.total_steps - self.step, 'step')}"
        text += f" at {rate:,.{0 if rate >= 10 else 1}f} images/s on {self.here.hardware}"
        if not self._evaluate_every:
            return text
        if pace.pause is None:
            return f"{text}; the time of each {self.evaluation} is not known yet and comes on top"
        return f"{text}, and {counted(pace.pauses_left, self.evaluation)} of {duration(pace.pause)}"

    def batches(self, epoch: Callable[[int, int], Iterator[Batch]]) -> Iterator[Batch]:
        """The batches of the remaining steps; `advance` is called once for each.

        Args:
            epoch: returns the batches of an epoch, given its number and the step within it to start from.

        Raises:
            shards.ShardSetError: the images cannot be read; the state after the last step is saved.
        """
        while not self.at_end:
            number, first = divmod(self.step, self.steps_per_epoch)
            try:
                yield from islice(epoch(number, first), min(self.steps_per_epoch - first, self.total_steps - self.step))
            except ShardSetError:
                self.save_unsaved()
                raise

    def due(self, every: int) -> bool:
        """Whether what is done every `every` steps, and at the end, is due now; with 0 it never is."""
        return every > 0 and (self.step % every == 0 or self.at_end)

    def start_sum_over_ranks(self, values: torch.Tensor) -> Callable[[], list[float]]:
        """Start to sum values over the ranks; in the same exchange the ranks agree on whether to stop.

        Args:
            values: float [N], on the rank's device.

        Returns:
            A function that waits for the sums and returns them. All ranks call it at the same step, since a stop is
            known from then on. On a GPU, work that was launched before it is called runs meanwhile.
        """
        packed = torch.cat([values, values.new_full((1,), float(self._stop_asked))])
        if self.here.size > 1:
            dist.all_reduce(packed)
        arriving = to_host(packed)

        def result() -> list[float]:
            *sums, stops = arriving()
            self._stopping = stops > 0
            return sums

        return result

    def sum_over_ranks(self, values: torch.Tensor) -> list[float]:
        """Sum values over the ranks and read them; see `start_sum_over_ranks`."""
        return self.start_sum_over_ranks(values)()

    def mean_over_ranks(self, values: torch.Tensor) -> list[float]:
        """`sum_over_ranks`, divided by the number of ranks."""
        return [value / self.here.size for value in self.sum_over_ranks(values)]

    def record(self, figures: Mapping[str, float | None], line: str, step: int | None = None) -> None:
        """Write figures to the run's records.

        Args:
            figures: by name; `step` and `epoch` are added.
            line: the same as text.
            step: the number of steps done that they are of; default: all.
        """
        if self._records:
            done = self.step if step is None else step
            self._records.write({**self._place(done), **figures}, line)

    def _place(self, done: int) -> dict[str, float]:
        return {"step": done, "epoch": round(done / self.steps_per_epoch, 4)}

    def show(self, name: str, picture: Path) -> None:
        """Show a picture file with the run's records."""
        if self._records:
            self._records.show(name, picture, self.step)

    def save_if_due(self, every: int) -> None:
        """Save the state where that is due, before a stop, and at the end of the run.

        Args:
            every: steps between checkpoints; 0 for one every ten minutes.

        Raises:
            Stopped: the run was asked to stop, and its state is saved.
        """
        due = self.due(every) if every else time.monotonic() - self._saved_at > CHECKPOINT_SECONDS
        if (every and due) or self._stopping or self.at_end:
            self.gather_state()
        if due or self._stopping or self.at_end:
            self._save()
        if self._stopping:
            if self.here.size > 1:
                dist.barrier()  # torchrun ends all ranks once one has ended: rank 0 must have written the checkpoint
            raise Stopped(f"stopped after step {self.step}; the same command continues from there")

    def _save(self) -> None:
        # rank 0's state is everyone's but for BatchNorm's running statistics, which training does not read
        if not self.here.is_main:
            return
        with waiting(f"writing a checkpoint to {self.checkpoints}"):
            path = checkpoint.save(self.checkpoints, {"format": self.layout, **self.state()}, self.keep)
        self._saved_at, self._saved_step = time.monotonic(), self.step
        log.info("wrote %s", path)
        self.saved(path)

    def save_unsaved(self) -> None:
        """Save the state on the way out of an error, unless the last step's is saved."""
        if self.step > self._saved_step:
            self._save()

    def saved(self, path: Path) -> None:  # noqa: B027 (most runs have nobody to tell)
        """Called on rank 0 when a checkpoint is complete."""
