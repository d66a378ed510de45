"""The order `global`: which samples a rank trains on at a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np

from pipelines.errors import PipelineError
from pipelines.order.mixture import Mixture, ids_of
from pipelines.order.permutation import keys, permute


@dataclass(frozen=True)
class EpochOrder:
    """One rank's share of one epoch under the policy `global`: one permutation of all ids per epoch.

    `pipelines.order.sharded.ShardedOrder` is its counterpart for the policy `sharded`.

    The permutation is a keyed bijection of [0, samples) that is evaluated where it is needed and never stored. An
    order therefore needs no memory, starts at any step immediately, and costs the same for a thousand samples as
    for a billion. Rank r's batch is a slice of the global batch, so the sequence of global batches does not depend
    on the world size. No id repeats within an epoch. The (samples mod global_batch) ids left out differ from epoch
    to epoch.

    Attributes:
        samples: number of ids.
        global_batch: images per step over all ranks.
        rank: this rank.
        world_size: number of ranks.
        seed: the run's seed.
        epoch: 0 or more.
        mixture: what the epoch takes of several sets; None: each id once.

    Raises:
        PipelineError: fewer samples than a global batch, or a global batch not divisible by the number of ranks.
    """

    policy: ClassVar[Literal["global", "sharded"]] = "global"

    samples: int
    global_batch: int
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    epoch: int = 0
    mixture: Mixture | None = field(default=None, kw_only=True)

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
            most = self.samples // world * world
            use = f"use a batch of at most {most}" if most else f"use at most {self.samples} ranks"
            raise PipelineError(
                f"{self.samples} samples do not fill one global batch of {batch}; {use} or pack more images"
            )
        if self.epoch < 0:
            raise PipelineError(f"epoch {self.epoch} is negative: epochs count from 0")

    @property
    def steps(self) -> int:
        """Steps in the epoch, the same on every rank."""
        return self.samples // self.global_batch

    @property
    def batch(self) -> int:
        """Images per step on this rank."""
        return self.global_batch // self.world_size

    def ids(self, step: int) -> np.ndarray:
        """int64[B]: the ids of this rank's batch at ``step``.

        Raises:
            IndexError: no such step in the epoch.
        """
        return ids_of(self.entries(step))

    def entries(self, step: int) -> np.ndarray:
        """int64[B]: the ids of `ids`, each with how often the epoch uses that image before (`mixture.Mixture`).

        Raises:
            IndexError: no such step in the epoch.
        """
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} is outside the epoch: it has steps 0 to {self.steps - 1}")
        # consecutive slices: joined in order of the ranks they are the global batch, for any number of ranks
        first = step * self.global_batch + self.rank * self.batch
        return self._at(np.arange(first, first + self.batch, dtype=np.int64))

    def substitute(self, step: int, slot: int, attempt: int) -> int:
        """The entry that replaces a bad image: another one of the same rank and epoch.

        Attempt 1 is the entry in the same slot one step later, attempt 2 two steps later, and so on around the epoch;
        the neighbouring slots follow.

        Args:
            step: the bad image's step.
            slot: its place in this rank's batch.
            attempt: 1 for the first replacement, 2 if that is bad too, up to steps * batch - 1.
        """
        # the same rank's ids, so that the replacement needs no exchange between ranks and its shard is read here anyway
        other = (step + attempt) % self.steps
        place = (slot + attempt // self.steps) % self.batch
        first = other * self.global_batch + self.rank * self.batch
        return int(self._at(np.array([first + place], dtype=np.int64))[0])

    def coming_shards(self, step: int) -> list[int]:
        """Shards to fetch ahead of ``step``, in the order of their use; empty where an order reads from all shards."""
        del step
        return []

    def _at(self, places: np.ndarray) -> np.ndarray:
        """int64[M]: entries at places (int64[M]) of the epoch, counted step by step and slot by slot over all ranks."""
        mixed = permute(places, self._total, _keys(self.seed, self.epoch))
        return mixed if self.mixture is None else self.mixture.entries(mixed, self.seed, self.epoch)

    @property
    def _total(self) -> int:
        """Entries of the epoch, with those left out."""
        return self.samples if self.mixture is None else self.mixture.total(self.epoch)


# kept, because `ids` is called for every step and round keys cost about as much as a small batch's permutation
@lru_cache(maxsize=8)
def _keys(seed: int, epoch: int) -> np.ndarray:
    return keys(seed, epoch, purpose=0)
