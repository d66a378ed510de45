"""The skeleton of a run that can be stopped and continued: pretraining, the linear probe, detection training.

A subclass writes its loop as: resume, open, and for each of `batches` one step, `advance`, a log line, `save_if_due`.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist

from fastmoco.devices import to_device, to_host
from fastmoco.ranks.heartbeat import EVALUATES
from fastmoco.ranks.world import World, from_all
from fastmoco.runs import status
from fastmoco.runs.environment import environment
from fastmoco.runs.errors import Stopped
from fastmoco.runs.health import watched
from fastmoco.runs.log import RunLog
from fastmoco.runs.tempo import Tempo
from fastmoco.runs.together import Together
from fastmoco.runs.warnings import Warnings, collected
from fastmoco.settings import CheckpointSettings
from shards.progress import Pace
from shards.words import counted, duration

log = logging.getLogger(__name__)

Batch = TypeVar("Batch")
SLOW_STEPS, ESTIMATE_AFTER = 3, 10
"""Steps that are not measured, as they compile and fill caches; steps after which the run's length is estimated."""


class Run(Together):
    """One run on one rank. All ranks call its methods at the same steps; rank 0 alone writes.

    Args:
        here, folder, steps_per_epoch, total_steps, saving: see `Saved`.
        batch_size: images of a step, on all ranks together.
        evaluate_every: steps between evaluations; 0 for none. The last step is followed by one, too.

    Attributes:
        evaluation: what an evaluation is called in messages.
        pace: seconds per step, and the time left.
    """

    evaluation: ClassVar[str] = "evaluation"

    def __init__(
        self,
        here: World,
        folder: Path | None,
        steps_per_epoch: int,
        total_steps: int,
        saving: CheckpointSettings,
        *,
        batch_size: int,
        evaluate_every: int = 0,
    ) -> None:
        super().__init__(here, folder, steps_per_epoch, total_steps, saving)
        self._batch_size, self._evaluate_every = batch_size, evaluate_every
        self.pace = Pace(total_steps)
        self._records: RunLog | None = None
        self._warnings = Warnings()

    def go_back(self, step: int, note: Mapping[str, Any]) -> None:
        """Make an earlier step the last one, whose state is loaded; the batches since count as skipped.

        Args:
            step: the number of steps done.
            note: for metrics.jsonl, whose later lines are dropped.
        """
        self.skipped += self.step - step
        self.step = self._saved_step = self._warnings.step = step
        self._refused = None
        self._estimate_at = step + ESTIMATE_AFTER
        if self._records:
            self._records.rewind(step)
            status.set_figures(self._records.figures)
            self._records.note({**self._place(step), **note})

    @property
    def epochs_done(self) -> float:
        """Epochs done, with the fraction of the current one."""
        return self.step / self.steps_per_epoch

    @contextmanager
    def opened(self, config: dict[str, Any]) -> Iterator[None]:
        """Open the run's records on rank 0, and let signals stop the run.

        Args:
            config: the settings in plain values, for config.json.
        """
        self.pace = Pace(self.total_steps, self.step, SLOW_STEPS, pause_every=self._evaluate_every, work=self.work())
        self._estimate_at = self.step + ESTIMATE_AFTER
        if self.here.is_main:
            length = {"ranks": self.here.size, "steps_per_epoch": self.steps_per_epoch, "total_steps": self.total_steps}
            recorded = {**config, "environment": environment() | length}
            self._records = RunLog(self.folder, recorded, self.step, self.pace, self.disk)
            status.set_figures(self._records.figures)
            if self._changed:
                self._records.note({**self._place(self.step), "changed": self._changed})
        status.update(**self._place(self.step), total_steps=self.total_steps)
        self._tempo = Tempo(self.here, from_all(self.here, platform.node()))
        try:
            with self.stoppable(), collected() as self._warnings:
                self._warnings.step = self.step
                with self.saving_ended(), watched(self.here, self.checkpoints, self._keeping()):
                    yield
        except Stopped as stopped:  # a callback's stop is no error of the command
            status.update(state="stopped", reason=str(stopped))
            raise
        finally:
            self._write_warnings()
            if self._records:
                self._records.close()

    def advance(self) -> None:
        """Count one step."""
        self.step += 1
        self._warnings.step = self.step
        self._write_warnings()
        if self._records:
            self._records.advance(self.step)
            status.step_done(**self._place(self.step), time_left_seconds=self.pace.left())
            # of a GPU's steps the host may be one ahead, which hardly changes the mean of several
            if self.step == self._estimate_at and not self.at_end:
                log.info("%s", self.estimate())

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Time a block as an evaluation, and not as part of a step; a run that stops in it owes it."""
        self.owed = True
        if self.here.heartbeat:
            self.here.heartbeat.does(EVALUATES, self.step)
        with self.pace.paused(), self._tempo.paused():
            yield
        self.owed = False

    def work(self) -> Callable[[int], float] | None:
        """The work of the first N steps, by N, in any unit; None: every step has the same."""
        return None

    def own_time(self) -> tuple[float, int]:
        """Seconds of this rank's own work since the last call, and the passes they are of; (0, 0) if not measured."""
        return 0.0, 0

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, with the wait for each measured."""
        return self._tempo.timed(batches)

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

    def due(self, every: int) -> bool:
        """Whether what is done every `every` steps, and at the end, is due now; with 0 it never is."""
        return every > 0 and (self.step % every == 0 or self.at_end)

    def start_sum_over_ranks(self, values: torch.Tensor) -> Callable[[], list[float]]:
        """Start to sum values over the ranks.

        Args:
            values: float [N], on the rank's device.

        Returns:
            A function that waits for the sums and returns them. On a GPU, work that was launched before it is called
            runs meanwhile.
        """
        rows = self._tempo.rows(self.own_time())
        # not new_tensor, whose copy to a GPU would make the host wait for all that was launched
        packed = torch.cat([values, to_device(torch.tensor(rows, dtype=values.dtype), values.device)])
        if self.here.size > 1:
            dist.all_reduce(packed)
        arriving, step = to_host(packed), self.step

        def result() -> list[float]:
            summed = arriving()
            sums, rows = summed[: len(values)], summed[len(values) :]
            if self.here.is_main:
                self._tempo.judge(rows, step)
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
            status.add_figures(figures)

    def _write_warnings(self) -> None:
        for line in self._warnings.unwritten():
            if self._records:
                self._records.note({**self._place(line["step"]), **line})

    def _place(self, done: int) -> dict[str, float]:
        return {"step": done, "epoch": round(done / self.steps_per_epoch, 4)}

    def show(self, name: str, picture: Path) -> None:
        """Show a picture file with the run's records."""
        if self._records:
            self._records.show(name, picture, self.step)
