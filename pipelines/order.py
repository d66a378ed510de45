"""Which samples a rank trains on at a step: a pure function of (seed, epoch, step, rank, world size)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import isqrt

import numpy as np

from pipelines._random import philox
from pipelines.errors import PipelineError

_ROUNDS = 12
_STREAM = 0x0D0E  # keeps the order's random words apart from those of the draws


@dataclass(frozen=True)
class EpochOrder:
    """One rank's share of one epoch, policy `global`: one permutation of all ids per epoch.

    The permutation is computed, not stored: a keyed bijection of [0, samples) evaluated at the places that are
    asked for. So an order takes no memory, starts at any step at once, and costs the same for a thousand
    samples and for a billion. Rank r's batch is a slice of the global batch, so the sequence of global batches
    does not depend on the world size. No id comes twice in an epoch; the (samples mod global_batch) ids left
    over differ from epoch to epoch.

    Attributes:
        samples: number of ids.
        global_batch: images a step over all ranks.
        rank: this rank.
        world_size: number of ranks.
        seed: the run's seed.
        epoch: 0 or more.

    Raises:
        PipelineError: fewer samples than a global batch, or a global batch that the ranks cannot share equally.
    """

    samples: int
    global_batch: int
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        batch, world = self.global_batch, self.world_size
        if world < 1 or not 0 <= self.rank < world:
            raise PipelineError(f"rank {self.rank} is not one of {world} ranks: use 0 to {world - 1}")
        if batch < 1:
            raise PipelineError(f"global batch {batch} holds no image: use 1 or more")
        if batch % world:
            lower, upper = batch // world * world, (batch // world + 1) * world
            use = f"{lower} or {upper}" if lower else f"{upper}"
            raise PipelineError(f"global batch {batch} is not divisible by {world} ranks; use {use}")
        if self.samples < batch:
            raise PipelineError(
                f"{self.samples} samples do not fill one global batch of {batch}; "
                f"use a batch of at most {self.samples // world * world} or pack more images"
            )
        if self.epoch < 0:
            raise PipelineError(f"epoch {self.epoch} is negative: epochs count from 0")

    @property
    def steps(self) -> int:
        """Steps in the epoch, the same on every rank."""
        return self.samples // self.global_batch

    @property
    def batch(self) -> int:
        """Images a step on this rank."""
        return self.global_batch // self.world_size

    def ids(self, step: int) -> np.ndarray:
        """int64[B]: the ids of this rank's batch at ``step``.

        Raises:
            IndexError: no such step in the epoch.
        """
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} is outside the epoch: it has steps 0 to {self.steps - 1}")
        first = step * self.global_batch + self.rank * self.batch
        return self._at(np.arange(first, first + self.batch, dtype=np.int64))

    def substitute(self, step: int, slot: int, attempt: int) -> int:
        """The id that stands in for a bad image, another one of the same rank in the same epoch.

        Attempt 1 is the id at the same slot one step later, attempt 2 two steps later and so on round the
        epoch, then the neighbouring slots'.

        Args:
            step: the bad image's step.
            slot: its place in this rank's batch.
            attempt: 1 for the first stand-in, 2 if that is bad too, up to steps * batch - 1.
        """
        other = (step + attempt) % self.steps
        place = (slot + attempt // self.steps) % self.batch
        first = other * self.global_batch + self.rank * self.batch
        return int(self._at(np.array([first + place], dtype=np.int64))[0])

    def _at(self, places: np.ndarray) -> np.ndarray:
        """int64[M]: the epoch's permutation at some places (int64[M])."""
        result = _bijection(places, self.samples, self.seed, self.epoch)
        outside = np.flatnonzero(result >= self.samples)
        while outside.size:  # cycle walking: at most about 2 sqrt(samples) places of the domain lie outside
            result[outside] = _bijection(result[outside], self.samples, self.seed, self.epoch)
            outside = outside[result[outside] >= self.samples]
        return result


def _bijection(places: np.ndarray, samples: int, seed: int, epoch: int) -> np.ndarray:
    """A keyed permutation of [0, rows * columns), the smallest near-square domain that holds all samples.

    An alternating Feistel network over Z_rows x Z_columns (Black and Rogaway, "Ciphers with arbitrary finite
    domains", CT-RSA 2002, section 5).
    """
    columns = isqrt(samples - 1) + 1
    rows = -(-samples // columns)
    left, right = places // columns, places % columns
    for turn, key in enumerate(_keys(seed, epoch)):
        if turn % 2 == 0:
            left = (left + _hashed(right, key, rows)) % rows
        else:
            right = (right + _hashed(left, key, columns)) % columns
    return left * columns + right


@lru_cache(maxsize=8)
def _keys(seed: int, epoch: int) -> tuple[np.uint64, ...]:
    """The round keys of an epoch, 64 bits each."""
    words = philox((np.arange(_ROUNDS), np.asarray(0), np.asarray(epoch), np.asarray(_STREAM << 16)), seed)
    return tuple(words[:, 0] << np.uint64(32) | words[:, 1])


def _hashed(values: np.ndarray, key: np.uint64, modulus: int) -> np.ndarray:
    """int64[M] in [0, modulus) of values (int64[M]): splitmix64's finaliser (Steele et al., OOPSLA 2014)."""
    z = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) % np.uint64(modulus)).astype(np.int64)
