"""The order `sharded`: ranks read whole shards and shuffle within windows."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np

from pipelines.errors import PipelineError
from pipelines.options import PipelineOptions
from pipelines.order.epoch import EpochOrder
from pipelines.order.mixture import ids_of
from pipelines.order.permutation import keys, permute

_SHARDS, _WINDOWS, _TURN = 1, 2, 3  # purposes of random words; 0 is that of `global`


@dataclass(frozen=True, eq=False)  # arrays have no single truth value, so a generated comparison would raise
class ShardedOrder(EpochOrder):
    """One rank's share of one epoch in which a rank reads few shards at a time, one after the other.

    The sequence of global batches is defined without reference to ranks. Each epoch permutes the shards, joins them
    to one ring of samples and starts at a random place of it. The ring is cut into `lanes` stretches. Lane l fills
    the slots from ``l * global_batch // lanes`` to the next lane's first slot in every global batch. A lane reads
    its stretch window by window and shuffles the samples of a window. A rank's slots belong to neighbouring lanes,
    so it reads the shards of these lanes only, for any number of ranks. Where that number does not divide `lanes`,
    two neighbouring ranks read the shards of a lane.

    At any step a rank uses the current windows of its lanes: ``lanes / world_size`` times about
    ``window / shard size + 1`` shards. The (samples mod global_batch) ids left out are the last of the ring:
    neighbours in a shard, and different ones in every epoch.

    Of several sets with weights (`mixture`), the ring is made of the shards that the epoch takes, some of them in part.

    An order holds 16 bytes for each shard that the rank reads in the epoch. They are computed when ids are first
    asked for, in time proportional to the number of shards; after that every step costs the same.

    Attributes:
        ends: int64[S]: shard s holds the ids from ends[s - 1] to ends[s] - 1; shards may be empty.
        lanes: stretches that the epoch is cut into; at most the global batch.
        window: samples shuffled together in a lane; at least the lane's share of a batch. A lane's last window holds
            up to twice as many.

    Raises:
        PipelineError: as `EpochOrder`, and where `lanes` or `window` is below 1.
    """

    policy: ClassVar[Literal["global", "sharded"]] = "sharded"

    ends: np.ndarray = field(kw_only=True, repr=False)
    lanes: int = field(default=PipelineOptions.order_lanes, kw_only=True)
    window: int = field(default=PipelineOptions.order_window, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lanes < 1:
            raise PipelineError(f"order_lanes={self.lanes}: it must be at least 1")
        if self.window < 1:
            raise PipelineError(f"order_window={self.window}: it must be at least 1")

    def coming_shards(self, step: int) -> list[int]:
        """Shards that this rank reads at ``step`` and soon: those of its lanes' windows, then those of the next ones.

        In this order, because a cache fetches them in the order given: what the step needs comes first.
        """
        first, width = self._slots(np.array(self._own_lanes))
        stops, ends = self._stretch
        found: dict[int, None] = {}  # keeps the order
        for ahead in (0, 1):
            _, start, size = self._window(step * width, width, ahead)
            begin = self.steps * first + start
            low = np.searchsorted(ends, begin, side="right")
            high = np.searchsorted(ends, begin + size - 1, side="right") + 1
            for one, end in zip(low.tolist(), high.tolist(), strict=True):
                shards = np.searchsorted(self.ends, ids_of(stops[one:end] - 1), side="right")
                found.update(dict.fromkeys(shards.tolist()))
        return list(found)

    def _at(self, places: np.ndarray) -> np.ndarray:
        # place of the epoch -> (step, slot) -> place in a lane -> shuffled in its window -> place on the ring -> id
        step, slot = np.divmod(places, self.global_batch)
        lane = self._lane(slot)
        first, width = self._slots(lane)
        place = step * width + slot - first
        which, start, size = self._window(place, width)
        # most places share a window: round keys are computed once for each distinct (lane, window)
        windows, inverse = np.unique(lane << 32 | which, return_inverse=True)
        round_keys = keys(self.seed, self.epoch, _WINDOWS, windows >> 32, windows & 0xFFFFFFFF)
        mixed = permute(place - start, size, round_keys[:, inverse])
        place = self.steps * first + start + mixed
        stops, ends = self._stretch
        found = np.searchsorted(ends, place, side="right")
        return stops[found] - (ends[found] - place)

    def _lane(self, slot: Any) -> Any:
        """The lane that fills a slot of the global batch, or the lanes of several slots (int64[M])."""
        # the inverse of `_slots`: the largest lane whose first slot, lane * global_batch // lanes, is at most `slot`
        return ((slot + 1) * self._lanes - 1) // self.global_batch

    def _slots(self, lane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First slot and number of slots of lanes (int64[M])."""
        first = lane * self.global_batch // self._lanes
        return first, (lane + 1) * self.global_batch // self._lanes - first

    def _window(self, place: np.ndarray, width: np.ndarray, ahead: int = 0) -> tuple[np.ndarray, ...]:
        """Number, first place and size of the windows that hold places of lanes, or of the windows `ahead` of these."""
        # the remainder joins the last window: as a window of its own it could hold a single sample and not shuffle it
        length, window = self.steps * width, np.maximum(self.window, width)
        last = np.maximum(length // window, 1) - 1
        which = np.minimum(place // window + ahead, last)
        start = which * window
        return which, start, np.where(which == last, length - start, window)

    @property
    def _lanes(self) -> int:
        return min(self.lanes, self.global_batch)

    @property
    def _own_lanes(self) -> range:
        """Lanes of this rank's slots."""
        first = self.rank * self.batch
        return range(self._lane(first), self._lane(first + self.batch - 1) + 1)

    @cached_property
    def _stretch(self) -> tuple[np.ndarray, np.ndarray]:
        """The shards of this rank's lanes in the order of the ring: entries and places of the epoch at their ends."""
        if self.mixture is None:
            stops, sizes = self.ends, np.diff(self.ends, prepend=0)
        else:
            stops, sizes = self.mixture.pieces(self.ends, self.seed, self.epoch)
        order = permute(np.arange(len(stops)), len(stops), keys(self.seed, self.epoch, _SHARDS))
        stops, sizes = stops[order], sizes[order]
        stops, sizes = stops[sizes > 0], sizes[sizes > 0]
        ends = np.cumsum(sizes)
        # a ring that starts at a shard's first sample would leave out the last samples of some shard in every epoch
        turn = int(keys(self.seed, self.epoch, _TURN)[0, 0]) % self._total
        first, width = self._slots(np.array([self._own_lanes[0], self._own_lanes[-1]]))
        begin, end = turn + self.steps * int(first[0]), turn + self.steps * int(first[1] + width[1])
        twice = np.concatenate((ends, ends + self._total))  # the ring continues at its beginning
        low, high = np.searchsorted(twice, (begin, end - 1), side="right")
        # copies, or the slices would keep the whole ring in memory
        return np.concatenate((stops, stops))[low : high + 1].copy(), twice[low : high + 1] - turn
