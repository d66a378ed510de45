"""Batches of photographs, read ahead by threads; their content is a pure function of (seed, step, rank, ranks)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from fastmoco.detection.errors import DetectionError
from fastmoco.detection.images import Reader, Sample
from fastmoco.detection.photos import PhotoSet
from fastmoco.ranks.world import World
from pipelines import EpochOrder
from pipelines._threads import worker_pool

_AHEAD = 3
_Result = TypeVar("_Result")
_Item = TypeVar("_Item")


class TrainingBatches:
    """A rank's batches.

    Args:
        photo_set: the training set.
        reader: reads its photographs.
        batch_size: photographs of a step over all ranks.
        seed: seed of the order.
        here: this rank.
        threads: number of reading threads.

    Attributes:
        steps_per_epoch: steps of an epoch; the (photographs mod batch) left over differ from epoch to epoch.

    Raises:
        DetectionError: the batch is not divisible by the ranks, or larger than the set.
    """

    def __init__(
        self, photo_set: PhotoSet, reader: Reader, batch_size: int, seed: int, here: World, threads: int
    ) -> None:
        count = len(photo_set.photos)
        if batch_size % here.size:
            more = (batch_size // here.size + 1) * here.size
            raise DetectionError(f"--batch-size {batch_size} is not divisible by {here.size} ranks; use {more}")
        if count < batch_size:
            raise DetectionError(f"{photo_set.name} has {count} photographs, fewer than --batch-size {batch_size}")
        self.photos, self.reader, self.threads = photo_set.photos, reader, threads
        self._shape: dict[str, Any] = {
            "samples": count, "global_batch": batch_size, "rank": here.rank, "world_size": here.size, "seed": seed
        }  # fmt: skip
        self.steps_per_epoch = count // batch_size

    def steps(self, first: int, last: int) -> Iterator[list[Sample]]:
        """The batches of the steps `first` … `last` − 1; raises BrokenImage."""
        size = self._shape["global_batch"] // self._shape["world_size"]
        # single photographs are read ahead, not batches, so that all threads work on the next batch
        batch: list[Sample] = []
        for sample in read_ahead(self._sample, self._positions(first, last), self.threads, _AHEAD * size):
            batch.append(sample)
            if len(batch) == size:
                yield batch
                batch = []

    def _positions(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Epoch and index in the set of each photograph."""
        for step in range(first, last):
            epoch, within = divmod(step, self.steps_per_epoch)
            # made again for each step: an order stores nothing, it computes the ids that it is asked for
            for place in EpochOrder(**self._shape, epoch=epoch).ids(within).tolist():
                yield epoch, place

    def _sample(self, asked: tuple[int, int]) -> Sample:
        epoch, place = asked
        return self.reader.training(self.photos[place], place, epoch)


def read_ahead(make: Callable[[_Item], _Result], asked: Iterable[_Item], threads: int, ahead: int) -> Iterator[_Result]:
    """`make` of each item in order; threads compute up to `ahead` of them in advance."""
    # not Executor.map, which would submit a whole epoch at once and keep what is done before it is asked for
    pool = worker_pool(threads, "photos")
    waiting: deque = deque()
    try:
        for item in asked:
            waiting.append(pool.submit(make, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # reached also when a run stops early and closes this generator: photographs not begun are dropped
        pool.shutdown(wait=True, cancel_futures=True)
