"""One shard: a deterministic USTAR tar and its indexes, committed by its record, written last."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from shards._software import version_of
from shards.errors import ShardSetError
from shards.format.index import ROW, idx_bytes, npy_bytes
from shards.format.layout import BLOCK, padded, sample_key, shard_name
from shards.format.levels import add_image, levels_bytes, no_levels
from shards.format.manifest import Quarantined, ShardRecord, parse_json
from shards.format.names import names_bytes
from shards.images.encode import Encoded
from shards.storage.base import Store

# In the order of the commit: the record says that the others exist.
SUFFIXES = (".tar", ".idx", ".npy", ".names", ".levels", ".json")


def extension(deep: bool) -> str:
    """Of the members with images: of 16 bits or of 8."""
    return "png" if deep else "jpg"


def shard_files(shard: int) -> dict[str, str]:
    """Names of a shard's files by suffix."""
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
        keep_names: Whether the set keeps the images' names.

    Raises:
        OSError: From any method: the disk is full, or the disk or store cannot be written.
    """

    def __init__(self, store: Store, shard: int, keep_names: bool = True) -> None:
        self.store = store
        self.shard = shard
        self.names = shard_files(shard)
        self._partials = {suffix: store.partial(name) for suffix, name in self.names.items()}
        self._file = open(self._partials[".tar"], "wb", buffering=0)  # noqa: SIM115
        self._hash = hashlib.sha256()
        self._offset = 0
        self._rows: list[tuple[int, int, int, int, int, int]] = []
        self._sources: list[str | tuple[str, str]] | None = [] if keep_names else None
        self._decoders: set[str] = set()
        self._levels: np.ndarray | None = None
        self._channels, self._reduced, self._own_range, self._several = 1, 0, 0, 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the partial files; after `commit` there are none."""
        with contextlib.suppress(OSError):  # some network file systems report a full disk here
            self._file.close()
        for path in self._partials.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def add(self, image: Encoded, label: int, source: str, url: str = "") -> None:
        """Append a sample.

        Args:
            image: The image; all of a shard are JPEGs, or PNGs of 16 bits.
            label: -1 means no label.
            source: The image's name in its source.
            url: Its URL.
        """
        key, data = sample_key(self.shard, len(self._rows)), image.data
        size = len(data)
        tail = bytes(padded(size) - size)
        if label >= 0:
            text = b"%d" % label
            tail = b"".join((tail, tar_header(f"{key}.cls", len(text)), text.ljust(BLOCK, b"\0")))
        self._rows.append((self._offset + BLOCK, size, image.width, image.height, label, zlib.crc32(data)))
        self._write(tar_header(f"{key}.{extension(image.counts is not None)}", size), data, tail)
        if self._sources is not None:
            self._sources.append((source, url) if url else source)
        if image.decoder:
            self._decoders.add(image.decoder)
        self._channels = max(self._channels, image.channels)
        self._reduced += image.reduced
        self._own_range += image.own_range
        self._several += image.several
        if image.counts is not None:
            self._levels = no_levels() if self._levels is None else self._levels
            add_image(self._levels, image.counts)

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
        samples = len(rows)
        kind = extension(self._levels is not None)
        texts = {".idx": idx_bytes(self.shard, rows, kind), ".npy": npy_bytes(rows)} if samples else {}
        if samples and self._sources is not None:
            texts[".names"] = names_bytes(self._sources)
        if self._levels is not None:
            texts[".levels"] = levels_bytes(self._levels)
        record = ShardRecord(
            name=shard_name(self.shard),
            samples=samples,
            bytes=self._offset if samples else 0,
            sha256=self._hash.hexdigest() if samples else "",
            index_sha256=_hash(texts.get(".npy")),
            quarantined=len(quarantine),
            plan=plan,
            names_sha256=_hash(texts.get(".names")),
            decoders=", ".join(f"{name} {version_of(name)}" for name in sorted(self._decoders)),
            levels_sha256=_hash(texts.get(".levels")),
            channels=self._channels if samples else 3,
            reduced=self._reduced,
            own_range=self._own_range,
            several=self._several,
        )
        texts[".json"] = record_bytes(record, quarantine)
        for suffix, text in texts.items():
            self._partials[suffix].write_bytes(text)
        kept = [suffix for suffix in SUFFIXES if suffix in texts or (suffix == ".tar" and samples)]
        self.store.put({self.names[suffix]: self._partials[suffix] for suffix in kept})
        return record


def _hash(data: bytes | None) -> str:
    return "" if data is None else hashlib.sha256(data).hexdigest()


def is_whole(record: ShardRecord, sizes: Mapping[str, int]) -> bool:
    """Whether the files of a complete shard are there, by names and sizes.

    A hash would read the whole set at each resume, and `verify` compares it.

    Args:
        record: The shard's.
        sizes: The files of the set with their sizes.
    """
    if not record.samples:
        return True
    suffixes = [".idx", ".npy"]
    suffixes += [".names"] if record.names_sha256 else []
    suffixes += [".levels"] if record.levels_sha256 else []
    return sizes.get(f"{record.name}.tar") == record.bytes and all(record.name + suffix in sizes for suffix in suffixes)


def record_bytes(record: ShardRecord, quarantine: Sequence[Quarantined]) -> bytes:
    """Content of the shard's `.json`: the record, and the images that were left out."""
    values = {**record.to_json(), "quarantine": [asdict(entry) for entry in quarantine]}
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
            f"{store.url}/{name} is damaged ({type(error).__name__}: {error}); run fastmoco pack again with the same"
            " --src and --out: it packs that shard again"
        ) from None
