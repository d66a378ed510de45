"""The files that the shards of a set have besides their tars: rows, keys and names, read on first use and cached."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import numpy as np

from shards._opening import index_error
from shards.format.index import ROW, idx_keys, rows_of_index
from shards.format.manifest import Manifest
from shards.format.names import LONGEST_LINE, names_of_bytes
from shards.storage.access import Access
from shards.storage.base import Store
from shards.words import display

T = TypeVar("T")
# Index rows cached per process. At 24 bytes each: at most 400 MB.
_MAX_ROWS = 1 << 24
_NAMES_OF_SHARDS = 4  # shards whose names, or keys of indexed tars, are cached
_HEADER = 1 << 17  # bytes, at most, of the header of a `.npy`, and of a `.names` without names
_LINE = 1 << 17  # bytes, at most, of a line of an `.idx`: a few names of a tar, percent-encoded


class Indexes:
    """Rows, keys and names of the shards of a set, by their numbers among the manifest's records.

    Args:
        store: The set's files.
        access: Reads them.
        manifest: The set's.
    """

    def __init__(self, store: Store, access: Access, manifest: Manifest) -> None:
        self._store, self._access, self._manifest = store, access, manifest
        largest = max((record.samples for record in manifest.records), default=1)
        self.rows = lru_cache(max(16, _MAX_ROWS // max(1, largest)))(self._rows)
        self.keys = lru_cache(_NAMES_OF_SHARDS)(self._keys)
        self.names = lru_cache(_NAMES_OF_SHARDS)(self._names)

    def clear(self) -> None:
        """Forget all of them; a later call reads them again."""
        for cached in (self.rows, self.keys, self.names):
            cached.cache_clear()

    def _rows(self, shard: int) -> np.ndarray:
        """ROW[N] of a shard; raises ShardSetError."""
        record = self._manifest.records[shard]
        name = f"{record.name}.npy"

        def parse(data: bytes) -> np.ndarray:
            return rows_of_index(data, name, record.samples, record.bytes, len(self._manifest.classes))

        return self._read(name, record.samples * ROW.itemsize + _HEADER, record.index_sha256, parse)

    def _names(self, shard: int) -> list[tuple[str, str]] | None:
        """Names and URLs of a shard's samples; None if the set does not keep them. Raises ShardSetError."""
        record = self._manifest.records[shard]
        if not record.names_sha256:
            return None
        name = f"{record.name}.names"
        longest = record.samples * LONGEST_LINE + _HEADER
        return self._read(name, longest, record.names_sha256, lambda data: names_of_bytes(data, name, record.samples))

    def _keys(self, shard: int) -> list[str]:
        """Keys of an indexed tar's samples; raises OSError, StoreError and ValueError."""
        record = self._manifest.records[shard]
        data = self._access.read(f"{record.name}.idx", (record.samples + 1) * _LINE)
        return [display(key) for key in idx_keys(data)]

    def _read(self, name: str, longest: int, sha256: str, parse: Callable[[bytes], T]) -> T:
        """What `parse` makes of a file.

        Args:
            name: The file's name.
            longest: Bytes that it may have at most.
            sha256: Its hash, hex; empty if it is not known.
            parse: Raises ValueError for other content.
        """
        damage: ValueError | None = None
        for _ in self._access.turns():
            try:
                data = self._access.read(name, longest)
                parsed = parse(data)
                # After the content, whose errors say more: a file of another shard, or with bytes at its end.
                if sha256 and hashlib.sha256(data).hexdigest() != sha256:
                    raise ValueError(f"{name} is damaged: it is not the file that was packed (SHA-256)")
                return parsed
            except OSError as error:
                raise index_error(self._store, name, self._manifest.keys, error) from error
            except ValueError as error:
                # A file in the node's cache, damaged by a crash (they are not synced), says nothing about the set; nor
                # does an answer that a proxy has cut off or replaced, which a later one may not be.
                damage = error
                self._access.forget(name)
        assert damage is not None
        raise index_error(self._store, name, self._manifest.keys, damage) from damage
