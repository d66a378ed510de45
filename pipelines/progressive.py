"""Views whose size changes at given batches of a run: progressive resizing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from pipelines.contract import TwoViewPipeline, TwoViews


class ProgressivePipeline:
    """A `TwoViewPipeline` that makes the batches of each size by a pipeline of that size.

    Which size a batch has follows from its number in the run, and its draws are those of any other size; so it does
    not matter how many batches were made ahead, or where a run was interrupted. The batches that a pipeline has made
    ahead beyond its last one are dropped. A stream reads the tars of an epoch again where the size changes within it.

    Args:
        make: makes the pipeline of a side in pixels; the one before is closed by then.
        sizes: for each size in order the number of the first batch that has it, the first of them 0, and the side.
        start: number of the batch that is wanted first.

    Attributes:
        quarantined: as of `TwoViewPipeline`, of the batches of the present size.
    """

    def __init__(
        self, make: Callable[[int], TwoViewPipeline], sizes: Sequence[tuple[int, int]], start: int = 0
    ) -> None:
        self._make, self._sizes = make, tuple(sizes)
        self._part = self._part_of(start)
        self._pipeline = make(self._sizes[self._part][1])
        self.backend, self.reason, self.order = self._pipeline.backend, self._pipeline.reason, self._pipeline.order
        self.steps_per_epoch, self.quarantined = self._pipeline.steps_per_epoch, self._pipeline.quarantined

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[TwoViews]:
        """See `pipelines.contract.TwoViewPipeline.epoch`."""
        begin = epoch * self.steps_per_epoch
        at, end = begin + start_step, begin + self.steps_per_epoch
        while True:
            part = self._part_of(at)
            until = min(end, self._sizes[part + 1][0]) if part + 1 < len(self._sizes) else end
            pipeline = self._of_part(part)
            for batch in islice(pipeline.epoch(epoch, at - begin), until - at):
                self.quarantined = pipeline.quarantined
                yield batch
                del batch  # or this frame would keep it, and its memory, while the next one is made
            at = until
            if at >= end:
                return

    def close(self) -> None:
        """See `pipelines.contract.TwoViewPipeline.close`."""
        self._pipeline.close()

    def __enter__(self) -> ProgressivePipeline:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _part_of(self, batch: int) -> int:
        return max(part for part, (first, _) in enumerate(self._sizes) if first <= max(batch, 0))

    def _of_part(self, part: int) -> TwoViewPipeline:
        if part != self._part:
            self._pipeline.close()  # before the next one takes its threads and memory
            self._pipeline, self._part = self._make(self._sizes[part][1]), part
        return self._pipeline
