"""The images of a packed set, found by its indexes and named as in what it was packed from."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

from shards.errors import PackError, ShardSetError
from shards.format.index import rows_of_index
from shards.format.layout import sample_key
from shards.format.manifest import MANIFEST, NUMBERED, Quarantined
from shards.format.names import names_of_bytes
from shards.format.parsing import parse_manifest
from shards.packing.sources.record import Record, Source
from shards.packing.sources.selection import Selection
from shards.storage.places import is_url
from shards.storage.store import open_store
from shards.words import display


class PackedSource(Source):
    """Images in a packed set.

    Args:
        root: Folder or URL of the set.
        grown: Digests of a set that was appended to, now and before. If it is this set, it is read as it was before.
    """

    kind = "packed set"

    def __init__(self, root: str, grown: tuple[str, str] | None = None) -> None:
        self.root = root
        self._grown = grown
        self.selection = Selection()

    def records(self) -> Iterator[Record | Quarantined]:
        """The images, shard by shard; see Source.records."""
        try:
            with open_store(self.root) as store:
                manifest = parse_manifest(store.read(MANIFEST), f"{self.root}/{MANIFEST}")
                if self._grown is not None and manifest.digest == self._grown[0]:
                    manifest = manifest.before(self._grown[1]) or manifest
                for record in manifest.records:
                    if not record.samples:
                        continue
                    index, names = f"{record.name}.npy", f"{record.name}.names"
                    rows = rows_of_index(store.read(index), index, record.samples, record.bytes)
                    kept = [sample_key(int(record.name[-6:]), row) for row in range(record.samples)]
                    if record.names_sha256:
                        found = names_of_bytes(store.read(names), names, record.samples)
                        kept = _told_apart([name for name, _ in found], kept)
                    for row, name in zip(rows, kept, strict=True):
                        tar = os.fsencode(f"{record.name}.tar")
                        yield Record(tar, int(row["size"]), None, name.encode(), int(row["offset"]))
        except (ValueError, ShardSetError) as error:
            raise PackError(f"{display(self.root)}: {error}") from None
        except OSError as error:
            raise PackError(f"cannot read {display(error.filename or self.root)}: {error.strerror}") from None


def _told_apart(names: list[str], keys: list[str]) -> list[str]:
    """Names of a shard's images, with their keys where several have the same: a plan packs each name once."""
    count = Counter(names)
    return [f"{name} ({key})" if count[name] > 1 else name or "?" for name, key in zip(names, keys, strict=True)]


def is_packed_set(root: str) -> bool:
    """Whether a folder or URL is that of a packed set. Indexed tars are read like other tars."""
    try:
        if not is_url(root) and not os.path.isdir(root):
            return False
        with open_store(root) as store:
            return parse_manifest(store.read(MANIFEST), MANIFEST).keys == NUMBERED
    except (OSError, ShardSetError):
        return False
