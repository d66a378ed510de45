"""Several sets in one epoch, each with a weight: which of their images an epoch takes, and how often."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from pipelines.errors import PipelineError
from pipelines.order.permutation import keys, permute
from shards.words import counted

_ID_BITS = 48  # a set has at most 10**12 images; the bits above hold how often the epoch has used the image before
_PART = 6  # purpose of permutations; 0 to 5 belong to the orders


def ids_of(entries: Any) -> Any:
    """The sample ids of entries: int64[M], or a number."""
    return entries & ((1 << _ID_BITS) - 1)


@dataclass(frozen=True)
class Mixture:
    """What an epoch takes of several sets. Their ids follow one another: those of the first set, then the next one's.

    A set of n images with weight w is a cycle: a permutation of its images, repeated without end. Epoch e takes the
    stretch from place floor(e w n) to floor((e + 1) w n) of it. So an epoch uses each image floor(w) or ceil(w) times;
    with w = 1/2, epoch 1 takes the images that epoch 0 has left out. Where w is p / q in lowest terms, q epochs use
    each image p times, and the next q epochs have another permutation.

    An entry is a sample id, plus 2**48 times the number of uses of that image before it in the epoch's stretch. The
    views are drawn by entry, so an image that is used twice in an epoch gets other views.

    Nothing is stored: all of it is computed for the places that are asked for.

    Attributes:
        sizes: images of each set.
        weights: of each set.

    Raises:
        PipelineError: a set is empty, or its weight is so small that an epoch may take no image of it.
    """

    sizes: tuple[int, ...]
    weights: tuple[Fraction, ...]

    def __post_init__(self) -> None:
        for number, (size, weight) in enumerate(zip(self.sizes, self.weights, strict=True)):
            if size * weight < 1:
                least = f"use {math.ceil(10**6 / size) / 10**6:g} or more" if size else "leave it out"
                raise PipelineError(
                    f"weight {float(weight):g} takes no image of set {number + 1} of {len(self.sizes)}, which has "
                    f"{size:,}: {least}"
                )

    @classmethod
    def of(cls, sizes: Sequence[int], weights: Sequence[float]) -> Mixture | None:
        """The mixture of sets, or None where an epoch takes each image of theirs once, which needs none.

        Args:
            sizes: images of each set.
            weights: of each set, as of `PipelineOptions.weights`.

        Raises:
            PipelineError: as for `Mixture`, or there are not as many weights as sets.
        """
        if weights and len(weights) != len(sizes):
            given = counted(len(weights), "weight")
            raise PipelineError(f"{given} for {counted(len(sizes), 'set')}: give one for each")
        # what their decimals say: in ten epochs, 0.1 is one in full
        exact = tuple(Fraction(str(float(weight))) for weight in weights or [1.0] * len(sizes))
        made = cls(tuple(sizes), exact)
        return None if set(exact) == {Fraction(1)} else made

    @property
    def samples(self) -> int:
        """Images that each epoch has at least; single epochs have up to one more of each set."""
        return sum(math.floor(size * weight) for size, weight in zip(self.sizes, self.weights, strict=True))

    def total(self, epoch: int) -> int:
        """Images of an epoch."""
        return sum(count for _, _, count in self._stretches(epoch))

    def entries(self, places: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """int64[M]: entries at places (int64[M], each in [0, total)) of an epoch, set after set."""
        found = np.empty_like(places)
        before = base = 0
        for number, (cycle, first, count) in enumerate(self._stretches(epoch)):
            size = self.sizes[number]
            own = np.flatnonzero((places >= before) & (places < before + count))
            along = places[own] - before
            place = (first + along) % size
            if self.weights[number].denominator > 1:  # else every image is taken equally often, in whatever order
                place = permute(place, size, _keys(seed, cycle, number))
            found[own] = base + place + (along // size << _ID_BITS)
            before, base = before + count, base + size
        return found

    def pieces(self, ends: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """An epoch's images as parts of shards, of which the first and the last of a stretch may not be whole.

        Here the cycle of a set is a permutation of its shards, so that an epoch reads few shards in part.

        Args:
            ends: int64[S]: shard s holds the ids from ends[s - 1] to ends[s] - 1, over all sets.
            seed: the run's seed.
            epoch: 0 or more.

        Returns:
            int64[P]: the entries at which the pieces end, each one more than its last; and int64[P]: their sizes.
        """
        stops: list[np.ndarray] = []
        sizes: list[np.ndarray] = []
        all_sizes = np.diff(ends, prepend=0)
        base = 0
        for number, (cycle, first, count) in enumerate(self._stretches(epoch)):
            size = self.sizes[number]
            low, high = np.searchsorted(ends, (base, base + size), side="right")
            shards = np.arange(low, high)
            if self.weights[number].denominator > 1:
                shards = shards[permute(np.arange(len(shards)), len(shards), _keys(seed, cycle, number))]
            of_shards = all_sizes[shards]
            passed = np.cumsum(of_shards)
            for use in range(-(-count // size)):
                length = min(size, count - use * size)
                # a stretch as long as the set at most: from its first place on, and around its end
                for begin, end in ((first, min(first + length, size)), (0, first + length - size)):
                    if begin >= end:
                        continue
                    one, last = np.searchsorted(passed, (begin, end - 1), side="right")
                    taken = of_shards[one : last + 1].copy()
                    cut = int(passed[last]) - end
                    stop = ends[shards[one : last + 1]]
                    stop[-1] -= cut
                    taken[0] -= begin - (int(passed[one]) - int(of_shards[one]))
                    taken[-1] -= cut
                    stops.append(stop + (use << _ID_BITS))
                    sizes.append(taken)
            base += size
        return np.concatenate(stops), np.concatenate(sizes)

    def _stretches(self, epoch: int) -> list[tuple[int, int, int]]:
        """For each set the number of its permutation, the first place in it, and the number of images."""
        found = []
        for size, weight in zip(self.sizes, self.weights, strict=True):
            cycle, within = divmod(epoch, weight.denominator)
            first, end = (math.floor(turn * size * weight) for turn in (within, within + 1))
            found.append((cycle, first % size, end - first))
        return found


# kept, as the keys of `pipelines.order.epoch` are
@lru_cache(maxsize=64)
def _keys(seed: int, cycle: int, number: int) -> np.ndarray:
    return keys(seed, cycle, _PART, number)
