"""JoinedSet: several shard sets, read as one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from shards.errors import ShardSetError
from shards.format.scaling import Scaling
from shards.reader import ShardSet


class JoinedSet:
    """Several shard sets, with the ids of the first set, then those of the next one, and so on.

    It has the methods of `ShardSet` that two-view pipelines use. The sets stay the caller's: `close` closes their
    files, which a later read opens again.

    Args:
        sets: The sets, two or more.

    Attributes:
        sets: The sets.
        path: What stands for one of the sets in a message's command.
        digest: Identity of the packed bytes of all of them, in this order, hex.
        ends: int64[S]: shard s, counted over all sets, holds the ids from ends[s - 1] to ends[s] - 1.
        remote: Whether reads may need a round trip to an object store.
        channels: 1 if all images are grey, else 3.
        bits: Bits of a channel, 8 or 16.

    Raises:
        ShardSetError: Two of them are the same set, or some have 8 bits and some 16.
    """

    path = "SET"

    def __init__(self, sets: Sequence[ShardSet]) -> None:
        self.sets = tuple(sets)
        places: dict[str, ShardSet] = {}
        for each in self.sets:
            other = places.setdefault(each.digest, each)
            if other is not each:
                raise ShardSetError(
                    f"{other.path} and {each.path} hold the same images; give one of them, and --weights to repeat them"
                )
        self.channels, self.bits = max(each.channels for each in self.sets), self.sets[0].bits
        other = next((each for each in self.sets if each.bits != self.bits), None)
        if other is not None:
            raise ShardSetError(
                f"{self.sets[0].path} has images of {self.bits} bits and {other.path} of {other.bits}, which are scaled"
                " in different ways; pack both with --keep-16-bit, or both without"
            )
        self.digest = hashlib.sha256("\n".join(places).encode()).hexdigest()
        sizes = np.array([len(each) for each in self.sets], dtype=np.int64)
        self._id_ends = np.cumsum(sizes)
        starts = self._id_ends - sizes
        self.ends = np.concatenate([each.ends + start for each, start in zip(self.sets, starts, strict=True)])
        self._shard_ends = np.cumsum([len(each.ends) for each in self.sets])
        self.remote = any(each.remote for each in self.sets)

    def __len__(self) -> int:
        return int(self._id_ends[-1])

    def give_up(self) -> None:
        """See `ShardSet.give_up`."""
        for each in self.sets:
            each.give_up()

    def close(self) -> None:
        """See `ShardSet.close`."""
        for each in self.sets:
            each.close()

    def locate(self, sample_id: int) -> tuple[str, str]:
        """Path or URL of a sample's tar, and its key: `("b/shard-000012.tar", "000012000345")`."""
        one, own = self._own(sample_id)
        name, key = one.locate(own)
        return f"{one.path}/{name}", key

    def source(self, sample_id: int) -> str:
        """See `ShardSet.source`."""
        one, own = self._own(sample_id)
        return one.source(own)

    def check(self, sample_id: int) -> bytes:
        """See `ShardSet.check`."""
        one, own = self._own(sample_id)
        return one.check(own)

    def sizes(self, ids: np.ndarray) -> np.ndarray:
        """See `ShardSet.sizes`."""
        found = np.empty((len(ids), 2), dtype=np.int32)
        for one, places, own in self._by_set(ids):
            found[places] = one.sizes(own)
        return found

    def scaling_of(self, sample_id: int) -> Scaling | None:
        """By which a sample's values are scaled with 16 bits: by the scaling of its set; None with 8."""
        one, _ = self._own(sample_id)
        return one.scaling

    def prefetch(self, shards: Iterable[int]) -> None:
        """Fetch shards, counted over all sets, into the node's cache in the background; see `ShardSet.prefetch`."""
        numbers = np.array(list(shards), dtype=np.int64)
        which = np.searchsorted(self._shard_ends, numbers, side="right")
        for number, one in enumerate(self.sets):
            if one.remote:
                one.prefetch((numbers[which == number] - self._shard_ends[number] + len(one.ends)).tolist())

    def expect(self, ids: np.ndarray) -> None:
        """See `ShardSet.expect`."""
        for one, _, own in self._by_set(ids):
            one.expect(own)

    def _own(self, sample_id: int) -> tuple[ShardSet, int]:
        """The set of a sample, and its id there."""
        number = int(np.searchsorted(self._id_ends, sample_id, side="right"))
        if sample_id < 0 or number == len(self.sets):
            raise IndexError(f"sample id {sample_id} is outside 0..{len(self) - 1} of {len(self.sets)} sets")
        return self.sets[number], sample_id - int(self._id_ends[number]) + len(self.sets[number])

    def _by_set(self, ids: np.ndarray) -> Iterable[tuple[ShardSet, np.ndarray, np.ndarray]]:
        """The sets of samples, with the places of their ids among `ids` and their ids in the set."""
        which = np.searchsorted(self._id_ends, ids, side="right")
        for number in np.unique(which).tolist():
            one, places = self.sets[number], np.flatnonzero(which == number)
            yield one, places, ids[places] - int(self._id_ends[number]) + len(one)


def joined(shards: ShardSet | JoinedSet | Sequence[ShardSet]) -> ShardSet | JoinedSet:
    """One set as it is, several as one."""
    if isinstance(shards, ShardSet | JoinedSet):
        return shards
    return shards[0] if len(shards) == 1 else JoinedSet(shards)


def require_channels(shards: ShardSet | JoinedSet, channels: int) -> None:
    """Raise ShardSetError if views have one channel and not all images are grey, or not known to be."""
    for each in shards.sets:
        if channels < each.channels:
            raise ShardSetError(
                f"{each.path} has images with colours, or a version packed it that did not record which are grey, and"
                " one channel is asked for: use three channels, or pack a set of grey images alone"
            )
