"""One shard: a deterministic USTAR tar and its indexes, committed by its record, written last."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from shards.errors import ShardSetError
from shards.format.index import ROW, idx_bytes, npy_bytes
from shards.format.layout import BLOCK, padded, sample_key, shard_name
from shards.format.manifest import Quarantined, ShardRecord, parse_json
from shards.storage.base import Store

SUFFIXES = (".tar", ".idx", ".npy", ".json")  # in the order of the commit: the record says that the others exist


def shard_files(shard: int) -> dict[str, str]:
    """Names of a shard's four files by suffix."""
    return {suffix: shard_name(shard) + suffix for suffix in SUFFIXES}


# Headers are cut from one template: `TarInfo.tobuf` takes ten times as long, and an image has up to two headers.
_BLANK = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)  # a header without name, size and checksum
# USTAR sums the header's bytes with the checksum's own field taken as eight spaces.
_BLANK_SUM = 8 * ord(" ") + sum(_BLANK[100:124]) + sum(_BLANK[136:148]) + sum(_BLANK[156:])


def tar_header(name: str, size: int) -> bytes:
    """USTAR header that depends on name and size only: mtime 0, owner 0, mode 0644.

    Args:
        name: At most 100 bytes.
        size: Under 8 GiB: eleven octal digits.
    """
    field, digits = name.encode(), b"%011o\0" % size
    check = b"%06o\0 " % (_BLANK_SUM + sum(field) + sum(digits))
    return b"".join((field.ljust(100, b"\0"), _BLANK[100:124], digits, _BLANK[136:148], check, _BLANK[156:]))


class ShardWriter:
    """Writes the samples of one shard; no file has its final name before `commit`.

    Args:
        store: The set's files.
        shard: Number of the shard.

    Raises:
        OSError: From any method: the disk is full, or the disk or store cannot be written.
    """

    def __init__(self, store: Store, shard: int) -> None:
        self.store = store
        self.shard = shard
        self.names = shard_files(shard)
        self._partials = {suffix: store.partial(name) for suffix, name in self.names.items()}
        self._file = open(self._partials[".tar"], "wb", buffering=0)  # noqa: SIM115
        self._hash = hashlib.sha256()
        self._offset = 0
        self._rows: list[tuple[int, int, int, int, int, int]] = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the partial files; after `commit` there are none."""
        with contextlib.suppress(OSError):  # some network file systems report a full disk here
            self._file.close()
        for path in self._partials.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def add(self, jpeg: bytes, height: int, width: int, label: int) -> None:
        """Append a sample; label -1 means no label."""
        key = sample_key(self.shard, len(self._rows))
        size = len(jpeg)
        tail = bytes(padded(size) - size)
        if label >= 0:
            text = b"%d" % label
            tail = b"".join((tail, tar_header(f"{key}.cls", len(text)), text.ljust(BLOCK, b"\0")))
        self._rows.append((self._offset + BLOCK, size, width, height, label, zlib.crc32(jpeg)))
        self._write(tar_header(f"{key}.jpg", size), jpeg, tail)

    def _write(self, *parts: bytes) -> None:
        for part in parts:
            self._hash.update(part)
        size = sum(map(len, parts))
        written = os.writev(self._file.fileno(), parts)  # one call, no copy into a buffer
        if written < size:  # a nearly full disk, or a signal
            rest = memoryview(b"".join(parts))[written:]
            while rest:
                rest = rest[os.write(self._file.fileno(), rest) :]
        self._offset += size

    def commit(self, plan: str, quarantine: Sequence[Quarantined]) -> ShardRecord:
        """Give the files their final names, the record last; a shard without samples has only the record."""
        # The end mark, padded to the record of 10,240 bytes in which tar programs write.
        end = self._offset + 2 * BLOCK
        self._write(bytes(2 * BLOCK + -end % tarfile.RECORDSIZE))
        self._file.close()
        rows = np.array(self._rows, dtype=ROW)
        index = npy_bytes(rows)
        samples = len(rows)
        record = ShardRecord(
            name=shard_name(self.shard),
            samples=samples,
            bytes=self._offset if samples else 0,
            sha256=self._hash.hexdigest() if samples else "",
            index_sha256=hashlib.sha256(index).hexdigest() if samples else "",
            quarantined=len(quarantine),
            plan=plan,
        )
        texts = {".json": record_bytes(record, quarantine)}
        if samples:
            texts = {".idx": idx_bytes(self.shard, rows), ".npy": index, **texts}
        for suffix, text in texts.items():
            self._partials[suffix].write_bytes(text)
        kept = SUFFIXES if samples else (".json",)
        self.store.put({self.names[suffix]: self._partials[suffix] for suffix in kept})
        return record


def record_bytes(record: ShardRecord, quarantine: Sequence[Quarantined]) -> bytes:
    """Content of the shard's `.json`: the record, and the images that were left out."""
    values = {**asdict(record), "quarantine": [asdict(entry) for entry in quarantine]}
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()


def read_record(store: Store, shard: int) -> tuple[ShardRecord, list[Quarantined]]:
    """Record and quarantined images from a shard's `.json`.

    Raises:
        OSError: The file cannot be read.
        ShardSetError: It is damaged.
    """
    name = shard_files(shard)[".json"]
    try:
        values = parse_json(store.read(name))
        return ShardRecord.from_json(values), [Quarantined(**entry) for entry in values["quarantine"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ShardSetError(
            f"{store.url}/{name} is damaged ({type(error).__name__}: {error}); run fastmoco-shard again with the same"
            " --src and --out: it packs that shard again"
        ) from None
