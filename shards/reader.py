"""ShardSet: random access to the images, sizes and labels of a shard set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from shards._indexes import Indexes
from shards._opening import opened_access, opened_manifest, opened_store, read_error
from shards._reading import Fault, differing, incomplete, read_image
from shards.errors import SampleError, ShardSetError, StoreError
from shards.format.index import ROW
from shards.format.layout import sample_key
from shards.format.manifest import NUMBERED, Manifest
from shards.format.scaling import Scaling
from shards.storage.places import is_url, local

_WORTH = 16  # images needed soon from one remote shard that make it worth fetching whole


class ShardSet:
    """Random access to a shard set by sample id, from any number of threads.

    Opening reads manifest.json only; a shard's files are opened on first use. A sample's id is its position in the
    set: shards in order, then rows. A pickle holds the arguments only.

    Args:
        path: Folder of the set, or its fsspec URL (`s3://bucket/prefix`), which is read through the node's cache.
        digest: The set is the one that had this digest, without the images that were appended since; None: all of it.

    Attributes:
        path: The folder as a Path, or the URL.
        store: Access to the files.
        manifest: The set's manifest.
        classes: Class names by label; empty if the set has no labels.
        digest: Identity of the packed bytes, hex.
        channels: 1 if all images are grey, else 3; sets of earlier versions have 3.
        bits: Bits of a channel: 8, of JPEGs, or 16, of PNGs.
        scaling: With 16 bits, the range of the values that is scaled to [0, 1]; else None.
        ends: int64[S]: shard s holds the ids from ends[s - 1] to ends[s] - 1.

    Raises:
        ShardSetError: There is no complete shard set at `path`, or it never had the digest.
    """

    def __init__(self, path: str | Path, digest: str | None = None) -> None:
        path = local(path) if isinstance(path, str) else path
        self.path = path if isinstance(path, str) and is_url(path) else Path(path)
        self.store = opened_store(self.path)
        self.manifest: Manifest = opened_manifest(self.store, digest)
        self._given = digest
        self.classes = self.manifest.classes
        self.digest = self.manifest.digest
        self.channels, self.bits = self.manifest.channels, self.manifest.bits
        self.scaling: Scaling | None = self.manifest.scaling
        records = self.manifest.records
        sizes = np.array([record.samples for record in records], dtype=np.int64)
        self.ends = np.cumsum(sizes)
        self._starts = self.ends - sizes
        self._total = int(sizes.sum())
        self._access = opened_access(self.store, self.digest)
        self._indexes = Indexes(self.store, self._access, self.manifest)

    def __len__(self) -> int:
        return self._total

    @property
    def sets(self) -> tuple[ShardSet, ...]:
        """The set itself; see `shards.joined.JoinedSet.sets`."""
        return (self,)

    def __repr__(self) -> str:
        return f"ShardSet({str(self.path)!r}: {self._total:,} samples in {len(self.manifest.records):,} shards)"

    def __enter__(self) -> ShardSet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardSet, (self.path, self._given)

    def give_up(self) -> None:
        """Let reads in other threads that wait for a store or disk out of reach fail now, with StoreError."""
        self._access.give_up()

    def close(self) -> None:
        """Close files and drop cached indexes; a later read opens them again."""
        self._access.close()
        self._indexes.clear()

    def locate(self, sample_id: int) -> tuple[str, str]:
        """Tar name and key of a sample: `("shard-000012.tar", "000012000345")`.

        Keys of indexed tars come from the `.idx` file, read on first use; if it is missing or damaged, the key is
        `unknown, row 345`.

        Raises:
            IndexError: The id is outside the set.
        """
        shard, row = self._place(sample_id)
        name = self.manifest.records[shard].name
        if self.manifest.keys == NUMBERED:
            return f"{name}.tar", sample_key(int(name[-6:]), row)
        try:
            return f"{name}.tar", self._indexes.keys(shard)[row]
        except (OSError, StoreError, ValueError, IndexError):  # must not fail: errors name samples by it
            return f"{name}.tar", f"unknown, row {row}"

    def source(self, sample_id: int) -> str:
        """Name of a sample in what the set was packed from; empty if the set does not keep it, or it cannot be read.

        Raises:
            IndexError: The id is outside the set.
        """
        shard, row = self._place(sample_id)
        try:
            names = self._indexes.names(shard)
            return names[row][0] if names else ""
        except (OSError, ShardSetError):  # must not fail, as of `locate`
            return ""

    def names(self, ids: np.ndarray) -> list[str]:
        """Names of samples.

        Args:
            ids: int64[N].

        Returns:
            For each sample its name in what the set was packed from, as quarantine.jsonl writes it: a path, a URL or
            `x.tar/a.jpg`; `TAR/KEY` where the set does not keep it.

        Raises:
            IndexError: An id is outside the set.
            ShardSetError: The names of a shard are missing or damaged.
        """
        return self._texts(ids, lambda kept, sample: kept[0] if kept else "/".join(self.locate(sample)))

    def urls(self, ids: np.ndarray) -> list[str]:
        """URLs that samples were fetched from, where that is another than their name; else empty.

        Args:
            ids: int64[N].

        Raises:
            IndexError, ShardSetError: As of `names`.
        """
        return self._texts(ids, lambda kept, _: kept[1] if kept else "")

    def _texts(self, ids: np.ndarray, text: Callable[[tuple[str, str] | None, int], str]) -> list[str]:
        """A text for each sample, made of its name and URL, which are None where the set does not keep them."""
        found = [""] * len(ids)
        for shard, places, rows in self._by_shard(np.asarray(ids, dtype=np.int64)):
            kept = self._indexes.names(shard)
            for place, row in zip(places.tolist(), rows.tolist(), strict=True):
                found[place] = text(kept[row] if kept else None, int(ids[place]))
        return found

    def read(self, sample_id: int) -> bytes:
        """Encoded JPEG (16 bits: PNG) of a sample, by one pread or request that releases the GIL.

        Raises:
            IndexError: The id is outside the set.
            SampleError: Its tar is damaged there.
            StoreError: Its tar is missing, or out of reach for longer than `FASTMOCO_STORE_WAIT`.
            ShardSetError: The index of its shard is missing or damaged.
        """
        return self._image(sample_id, incomplete)

    def check(self, sample_id: int) -> bytes:
        """Read a sample as `read` does and compare it with the checksum taken when it was packed.

        Raises:
            IndexError: The id is outside the set.
            SampleError: The bytes differ.
            StoreError, ShardSetError: As of `read`.
        """
        return self._image(sample_id, differing)

    def _image(self, sample_id: int, fault: Fault) -> bytes:
        shard, row = self._place(sample_id)
        entry, record = self._indexes.rows(shard)[row], self.manifest.records[shard]
        try:
            data, cause = read_image(self._access, record, entry, fault, self.bits)
        except OSError as error:
            raise read_error(self.store, f"{record.name}.tar", self.manifest.keys, error) from error
        if cause:
            raise SampleError(sample_id, *self.locate(sample_id), cause)
        return data

    def sizes(self, ids: np.ndarray) -> np.ndarray:
        """Sizes of samples.

        Args:
            ids: int64[N].

        Returns:
            int32[N, 2]: height and width in pixels, as decoded.

        Raises:
            IndexError: An id is outside the set.
            ShardSetError: The index of a shard is missing or damaged.
        """
        rows = self.rows(ids)
        return np.stack([rows["height"], rows["width"]], axis=1).astype(np.int32)

    def labels(self, ids: np.ndarray) -> np.ndarray:
        """Labels of samples: int64[N] for ids int64[N], -1 for none. Raises what `sizes` raises."""
        return self.rows(ids)["label"].astype(np.int64)

    @property
    def remote(self) -> bool:
        """Whether reads may need a round trip to an object store."""
        return self.store.local is None

    def prefetch(self, shards: Iterable[int]) -> list[Future[bool]]:
        """Fetch shards of a remote set into the node's cache in the background, in this order.

        Least recently used shards are evicted for them, so the shards of one call have to fit together.

        Args:
            shards: Indices into the manifest's records.

        Returns:
            For each shard a future: whether it ended up in the cache. Always True for a local set.
        """
        records = [self.manifest.records[shard] for shard in shards]
        # The last one first, as each goes to the front of the queue (before fetches that reads have requested).
        futures = [self._access.prefetch(f"{r.name}.tar", r.bytes, r.sha256) for r in reversed(records)]
        return futures[::-1]

    def expect(self, ids: np.ndarray) -> None:
        """Announce the samples (int64[N]) to be read next: remote shards that hold many of them are prefetched.

        Images of the other shards are read one by one, which is cheaper than fetching a whole shard for a few.
        """
        if not self.remote:
            return
        places = np.searchsorted(self.ends, ids, side="right")
        shards, first, counts = np.unique(places, return_index=True, return_counts=True)
        sizes = self.ends[shards] - self._starts[shards]
        worth = counts >= np.minimum(_WORTH, sizes)
        # In the order in which they are needed, not in the set's.
        self.prefetch(shards[worth][np.argsort(first[worth])].tolist())

    def scaling_of(self, sample_id: int) -> Scaling | None:
        """By which a sample's values are scaled: the set's; see `shards.joined.JoinedSet.scaling_of`."""
        del sample_id
        return self.scaling

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """ROW[N] of samples, for ids int64[N]. Raises what `sizes` raises."""
        out = np.empty(len(ids), dtype=ROW)
        for shard, places, rows in self._by_shard(np.asarray(ids, dtype=np.int64)):
            out[places] = self._indexes.rows(shard)[rows]
        return out

    def _by_shard(self, ids: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Shards of samples, with the places of their ids among `ids` and their rows in the shard.

        Shard by shard: the rows of only some shards are cached, and ids in random order would load them repeatedly.
        """
        if ids.size and (ids.min() < 0 or ids.max() >= self._total):
            wrong = int(ids[(ids < 0) | (ids >= self._total)][0])
            raise IndexError(f"sample id {wrong} is outside 0..{self._total - 1} of {self.path}")
        shards = np.searchsorted(self.ends, ids, side="right")
        order = np.argsort(shards, kind="stable")
        found, first = np.unique(shards[order], return_index=True)
        for shard, places in zip(found.tolist(), np.split(order, first[1:]), strict=False):
            yield shard, places, ids[places] - self._starts[shard]

    def _place(self, sample_id: int) -> tuple[int, int]:
        if not 0 <= sample_id < self._total:
            raise IndexError(f"sample id {sample_id} is outside 0..{self._total - 1} of {self.path}")
        shard = int(np.searchsorted(self.ends, sample_id, side="right"))
        return shard, int(sample_id - self._starts[shard])
