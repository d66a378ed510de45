"""Encoded images and drawn parameters of a rank's batches, with replacements for bad images."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from pipelines._threads import spread
from pipelines.augmentation import ViewPair
from pipelines.draws import draw
from pipelines.errors import PipelineError
from pipelines.order.epoch import EpochOrder
from pipelines.order.mixture import ids_of
from pipelines.views import ViewParams
from shards import SampleError, ShardSet
from shards.format.scaling import Scaling
from shards.joined import JoinedSet

_MAX_ATTEMPTS = 100  # bad replacements in a row mean that the set is damaged as a whole, not in single images
_AHEAD = 4  # steps whose shards are fetched ahead if the set is remote
_REQUESTS = 32  # images read at once from a remote set


class Known(Protocol):
    """Images that cannot be decoded: cause by id."""

    def __contains__(self, sample: object, /) -> bool: ...
    def __getitem__(self, sample: int, /) -> str: ...
    def learn(self, causes: Mapping[int, str]) -> None:
        """Add images: id and cause."""


@dataclass(frozen=True)
class Replacement:
    """A bad image and its replacement.

    Attributes:
        sample: id of the bad image.
        shard: file name or URL of its tar.
        key: its key in the tar.
        cause: why it cannot be used.
        by: id of the image that replaced it.
        source: its name in what the set was packed from; empty if that is not known.
    """

    sample: int
    shard: str
    key: str
    cause: str
    by: int
    source: str = ""


@dataclass
class Batch:
    """One rank's images of one step, before they are decoded.

    Attributes:
        ids: int64[B], of the images used after replacement.
        encoded: B files, JPEGs or PNGs of 16 bits.
        sizes: int32[B, 2], height and width.
        params: of the query and of the key.
        scalings: with 16 bits, by which each image's values are scaled; None with 8.
        replaced: by place in the batch: the first bad image there, whatever else was tried after it.
        attempts: by place in the batch: replacements tried so far.
    """

    ids: np.ndarray
    encoded: list[bytes]
    sizes: np.ndarray
    params: tuple[ViewParams, ViewParams]
    scalings: list[Scaling] | None = None
    replaced: dict[int, Replacement] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)


class Samples:
    """Reads batches and replaces bad images.

    An image is bad if its bytes differ from those packed (by their checksum, so that every backend finds the same
    images), or if it cannot be decoded. A store or disk out of reach or a missing file is no image's fault: it raises.
    `EpochOrder.substitute` names the replacement, whose parameters are drawn under its own entry. Nothing else in the
    batch changes.

    Args:
        shards: the packed set.
        pair: the augmentation of both views.
        seed: the run's seed.
        pool: threads that read.
        undecodable: images that cannot be decoded, which are replaced without another try; this adds to them. That
            changes no batch: their replacements are those that a failure to decode would lead to.
    """

    def __init__(
        self, shards: ShardSet | JoinedSet, pair: ViewPair, seed: int, pool: ThreadPoolExecutor, undecodable: Known
    ) -> None:
        self._shards, self._pair, self._seed, self._undecodable = shards, pair, seed, undecodable
        # requests to a store wait most of the time, so far more of them run at once than there are cores
        self._readers = ThreadPoolExecutor(_REQUESTS, "pipelines-requests") if shards.remote else pool
        self._coming: frozenset[int] = frozenset()

    def give_up(self) -> None:
        """Let reads that wait for a store out of reach fail now."""
        self._shards.give_up()

    def batch(self, order: EpochOrder, step: int) -> Batch:
        """Read the batch of a step. Unreadable images are replaced; undecodable ones are not known yet.

        Raises:
            shards.ShardSetError: a tar or an index is missing or out of reach.
        """
        entries = order.entries(step)
        ids = ids_of(entries)
        if self._shards.remote:
            self._fetch_ahead(order, step)
        read = spread(self._readers, lambda slot: self._read(int(ids[slot])), len(ids))
        # sizes are those of the index, so that crops are drawn before any image is decoded
        sizes = self._shards.sizes(ids)
        encoded = [data if isinstance(data, bytes) else b"" for data in read]
        batch = Batch(ids, encoded, sizes, self._draw(order, entries, sizes), self._scalings(ids))
        self.replace(batch, order, step, {i: c for i, c in enumerate(read) if isinstance(c, str)})
        return batch

    def _fetch_ahead(self, order: EpochOrder, step: int) -> None:
        """Start fetching the remote shards that the next steps read."""
        coming = order.coming_shards(step)
        if not coming:
            steps = range(step, min(step + _AHEAD, order.steps))
            self._shards.expect(np.concatenate([order.ids(later) for later in steps]))
            return
        # each is requested once: a cache too small for all of them would evict and fetch the same shards in a circle
        self._shards.prefetch([shard for shard in coming if shard not in self._coming])
        self._coming = frozenset(coming)

    def replace(self, batch: Batch, order: EpochOrder, step: int, causes: Mapping[int, str]) -> None:
        """Replace bad images.

        Args:
            batch: changed in place.
            order: of the epoch.
            step: the batch's.
            causes: why images cannot be used, by place in the batch.

        Raises:
            PipelineError: a hundred replacements for one image, or all there are, are bad too.
        """
        if not causes:
            return
        entries = np.empty(len(causes), dtype=np.int64)
        for turn, (slot, cause) in enumerate(causes.items()):
            sample = int(batch.ids[slot])
            # the first bad image of a place is reported, not those that were tried in its place
            first = batch.replaced.get(slot) or Replacement(
                sample, *self._shards.locate(sample), cause, -1, self._shards.source(sample)
            )
            entries[turn], batch.encoded[slot] = self._replacement(batch, order, step, slot, first)
            batch.ids[slot] = ids_of(entries[turn])
            batch.replaced[slot] = replace(first, by=int(batch.ids[slot]))
        slots = np.fromiter(causes, dtype=np.int64)
        batch.scalings = self._scalings(batch.ids)
        batch.sizes[slots] = self._shards.sizes(batch.ids[slots])
        query, key = self._draw(order, entries, batch.sizes[slots])
        batch.params = batch.params[0].replaced(slots, query), batch.params[1].replaced(slots, key)

    def replace_undecodable(self, batch: Batch, order: EpochOrder, step: int, causes: Mapping[int, str]) -> None:
        """Replace images that the backend cannot decode, as `replace` does, now and in all later batches."""
        self._undecodable.learn({int(batch.ids[slot]): cause for slot, cause in causes.items()})
        self.replace(batch, order, step, causes)

    def _replacement(
        self, batch: Batch, order: EpochOrder, step: int, slot: int, first: Replacement
    ) -> tuple[int, bytes]:
        for attempt in range(batch.attempts.get(slot, 0) + 1, min(_MAX_ATTEMPTS, order.steps * order.batch)):
            batch.attempts[slot] = attempt
            entry = order.substitute(step, slot, attempt)
            data = self._read(ids_of(entry))
            if isinstance(data, bytes):
                return entry, data
        raise PipelineError(
            f"sample {first.sample} is bad ({first.cause}), and so are all {batch.attempts.get(slot, 0)} tried in "
            f"its place: run `fastmoco verify {self._shards.path}` and pack the set again"
        )

    def _scalings(self, ids: np.ndarray) -> list[Scaling] | None:
        found = [self._shards.scaling_of(sample) for sample in ids.tolist()] if self._shards.bits == 16 else []
        return [scaling for scaling in found if scaling is not None] or None

    def _draw(self, order: EpochOrder, entries: np.ndarray, sizes: np.ndarray) -> tuple[ViewParams, ViewParams]:
        # by entry, so that an image that repeats in an epoch gets other views
        query, key = (
            draw(spec, seed=self._seed, epoch=order.epoch, ids=entries, sizes=sizes, view=view)
            for view, spec in enumerate(self._pair)
        )
        return query, key

    def _read(self, sample_id: int) -> bytes | str:
        """The image's bytes as packed, or why they cannot be used."""
        if sample_id in self._undecodable:
            return self._undecodable[sample_id]
        try:
            return self._shards.check(sample_id)
        except SampleError as error:
            return error.cause
