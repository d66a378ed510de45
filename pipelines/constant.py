"""One batch, repeated: nothing is read in the loop, so a benchmark measures the model's speed alone."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.contract import TwoViewPipeline, TwoViews
from pipelines.errors import PipelineError


class ConstantPipeline:
    """A `TwoViewPipeline` that repeats one batch of real views, with that batch's ids.

    Args:
        source: the pipeline that makes the batch; closed once it has.
        reason: why this pipeline was chosen.
    """

    backend = "constant"

    def __init__(self, source: TwoViewPipeline, reason: str) -> None:
        self.reason = reason
        with source:  # closed before the first step, so that no thread of it disturbs what is measured
            self.steps_per_epoch, self.order = source.steps_per_epoch, source.order
            self._views = next(iter(source.epoch(0)))
            self.quarantined = source.quarantined

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[TwoViews]:
        """The batch, once for each step from ``start_step`` on."""
        if not 0 <= start_step <= self.steps_per_epoch:
            raise PipelineError(f"start_step {start_step} is outside the epoch's steps 0 to {self.steps_per_epoch}")
        for _ in range(start_step, self.steps_per_epoch):
            yield self._views

    def close(self) -> None:
        """Nothing to release."""

    def __enter__(self) -> ConstantPipeline:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
