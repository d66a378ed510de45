"""The order of a stream: which tars a rank reads in an epoch, and how their images are shuffled."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from pipelines._random import uniforms
from pipelines._threads import Prefetcher
from pipelines.errors import PipelineError
from pipelines.order.permutation import keys, permute
from shards.errors import TarReadError
from shards.foreign.streaming import images

PLACE_BITS, TAR_BITS = 32, 20
"""Bits of an id: the low 32 hold an image's place in its tar, the next 20 the tar's place among all tars."""

_LANES = 4  # tars that a rank reads at once; part of the order, so a change breaks resuming
_AHEAD = 64  # images read ahead in each of them
_ASSIGN, _PASS = 4, 5  # purposes of permutations; 0 to 3 belong to the orders of packed sets
_BUFFER = 0x0B0F  # random stream that picks from the buffer; the views' streams are 0 to 3


@dataclass(frozen=True)
class TarOrder:
    """Which tars a rank reads in an epoch, and in which order.

    Attributes:
        tars: paths or URLs of all tars. An image's id is its tar's place here times 2**32, plus its place in the tar.
        rank: this rank.
        world_size: number of ranks.
        seed: the run's seed.

    Raises:
        PipelineError: there are fewer tars than ranks, or more than 2**20.
    """

    tars: Sequence[str]
    rank: int = 0
    world_size: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.tars) < self.world_size:
            raise PipelineError(
                f"{len(self.tars)} tars are too few for {self.world_size} ranks: use at most as many ranks as tars, "
                "or pack the tars into a shard set with `fastmoco pack`"
            )
        if len(self.tars) > 1 << TAR_BITS:
            raise PipelineError(f"{len(self.tars)} tars are too many: stream at most {1 << TAR_BITS}")

    def of_pass(self, epoch: int, number: int) -> np.ndarray:
        """int64[M]: places of the rank's tars in an epoch, in the order of the rank's pass `number` over them."""
        # every rank takes every world_size-th tar of one permutation: none is read twice, none is left out
        whole = permute(np.arange(len(self.tars)), len(self.tars), keys(self.seed, epoch, _ASSIGN))
        mine = whole[self.rank :: self.world_size]
        order = permute(np.arange(len(mine)), len(mine), keys(self.seed, epoch, _PASS, number, self.rank))
        return mine[order]


@dataclass(frozen=True)
class Image:
    """One image of a stream.

    Attributes:
        id: its tar's place among all, times 2**32, and its own place in the tar.
        passes: passes over its tars that the rank has completed before in this epoch.
        key: in the tar.
        data: the file.
    """

    id: int
    passes: int
    key: str
    data: bytes


def mixed(tar_order: TarOrder, epoch: int, buffer: int) -> Generator[Image, None, None]:
    """A rank's images of an epoch in their final order; endless, as the rank reads its tars again and again.

    Args:
        tar_order: assigns the tars.
        epoch: 0 or more.
        buffer: images that the next one is drawn from. The buffer is emptied before the next pass begins, so no
            image repeats within a pass.

    Raises:
        TarReadError: a tar cannot be read, or no tar of the rank holds an image.
    """
    numbers = _numbers(tar_order, epoch)
    for number in count():
        tars = tar_order.of_pass(epoch, number)
        empty = True
        for image in _shuffled(_interleaved(tar_order.tars, tars, number), numbers, buffer):
            empty = False
            yield image
        if empty:
            raise TarReadError(
                f"none of the {len(tars)} tars of rank {tar_order.rank} holds an image; the first is "
                f"{tar_order.tars[tars[0]]}: list its contents with `tar -tf`"
            )


def _numbers(tar_order: TarOrder, epoch: int) -> Iterator[float]:
    """Uniform numbers in (0, 1), an endless sequence for each (seed, epoch, rank)."""
    for block in count():  # of 1,024, because a call of numpy costs more than a number
        ids = np.arange(block << 10, (block + 1) << 10) + (tar_order.rank << 40)
        yield from uniforms(ids, seed=tar_order.seed, epoch=epoch, stream=_BUFFER, count=1)[:, 0].tolist()


def _shuffled(stream: Iterator[Image], numbers: Iterator[float], size: int) -> Iterator[Image]:
    room: list[Image] = []
    for image in stream:
        room.append(image)
        if len(room) >= size:
            yield _picked(room, next(numbers))
    while room:
        yield _picked(room, next(numbers))


def _picked(room: list[Image], number: float) -> Image:
    # swapped with the last and popped: removing from the middle would move thousands of entries
    place = int(number * len(room))
    room[place], room[-1] = room[-1], room[place]
    return room.pop()


def _interleaved(names: Sequence[str], tars: np.ndarray, number: int) -> Iterator[Image]:
    """The images of tars, one from each lane in turn; each lane reads its tars in a thread of its own.

    The turns are strict: taking whichever lane is ready first would make the order depend on the network.
    """
    lanes = [
        Prefetcher(_lane(names, tars[lane::_LANES], number), _AHEAD, "pipelines-tars")
        for lane in range(min(_LANES, len(tars)))
    ]
    try:
        going = list(lanes)
        while going:
            for lane in tuple(going):
                image = next(lane, None)
                if image is None:
                    going.remove(lane)
                else:
                    yield image
    finally:
        for lane in lanes:
            lane.close()


def _lane(names: Sequence[str], tars: np.ndarray, number: int) -> Iterator[Image]:
    for tar in map(int, tars):
        for image in images(names[tar]):
            yield Image((tar << PLACE_BITS) + image.place, number, image.key, image.data)
