"""ShardSet: the bytes, sizes and labels of a packed set by sample id."""

from __future__ import annotations

import io
import os
import resource
import threading
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import SampleError, ShardSetError
from shards.files import display
from shards.index import ROW, idx_keys, npy_header, sample_key
from shards.manifest import MANIFEST, NUMBERED, Manifest, read_manifest

# Rows of the binary indexes kept in memory: 24 bytes each, so at most 400 MB in a process.
_MAX_ROWS = 1 << 24
_MAX_DESCRIPTORS = 512
_KEYS_OF_SHARDS = 4  # key lists of tars made by others that are kept in memory
_PARSING = threading.Lock()


class _Tar:
    """An open tar; the descriptor lives until its last reader lets go, so that eviction cuts no read off."""

    __slots__ = ("descriptor",)

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _descriptors() -> int:
    """Tars to hold open: a quarter of what the process may open, at most 512."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else max(8, min(_MAX_DESCRIPTORS, soft // 4))


class ShardSet:
    """Random access to a packed set by sample id, from any number of threads.

    Opening reads manifest.json alone; shards are opened when they are first asked for. A sample's id is its place
    in the set: shards in order, then rows. Pickling keeps the path alone.

    Args:
        path: Folder of the set.

    Attributes:
        path: The folder.
        manifest: What the set says about itself.
        classes: Class names by label; empty where there are no labels.
        digest: Identity of the packed bytes, hex.

    Raises:
        ShardSetError: `path` holds no whole shard set.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest: Manifest = _open_manifest(self.path)
        self.classes = self.manifest.classes
        self.digest = self.manifest.digest
        records = self.manifest.records
        self._ends = np.cumsum([record.samples for record in records], dtype=np.int64)
        self._starts = self._ends - np.array([record.samples for record in records], dtype=np.int64)
        self._total = int(self._ends[-1]) if records else 0
        largest = max((record.samples for record in records), default=1)
        self._tar = lru_cache(_descriptors())(self._open_tar)
        self._keys = lru_cache(_KEYS_OF_SHARDS)(self._open_keys)
        self._rows = lru_cache(max(16, _MAX_ROWS // max(1, largest)))(self._open_rows)

    def __len__(self) -> int:
        return self._total

    def __repr__(self) -> str:
        return f"ShardSet({str(self.path)!r}: {self._total:,} samples in {len(self.manifest.records):,} shards)"

    def __enter__(self) -> ShardSet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardSet, (self.path,)

    def close(self) -> None:
        """Let go of open files and of indexes in memory; a later read opens them again."""
        self._tar.cache_clear()
        self._rows.cache_clear()
        self._keys.cache_clear()

    def locate(self, sample_id: int) -> tuple[str, str]:
        """Tar name and key of a sample: `("shard-000012.tar", "000012000345")`.

        In tars made by others, keys are those of the names in the `.idx` file, read when they are first needed;
        `unknown, row 345` where that file is missing or damaged.

        Raises:
            IndexError: The id is outside the set.
        """
        shard, row = self._place(sample_id)
        name = self.manifest.records[shard].name
        if self.manifest.keys == NUMBERED:
            return f"{name}.tar", sample_key(int(name[-6:]), row)
        try:
            return f"{name}.tar", self._keys(shard)[row]
        except (OSError, ValueError, IndexError):  # the index is damaged: what is asked for may be why
            return f"{name}.tar", f"unknown, row {row}"

    def read(self, sample_id: int) -> bytes:
        """Encoded JPEG of a sample, by one pread; the GIL is free meanwhile.

        Raises:
            IndexError: The id is outside the set.
            SampleError: Its file is missing or damaged.
        """
        shard, row = self._place(sample_id)
        try:
            entry = self._rows(shard)[row]
            offset, size = int(entry["offset"]), int(entry["size"])
            tar = self._tar(shard)  # held while it is read, so that nobody closes it
            data = os.pread(tar.descriptor, size, offset)
        except (OSError, ValueError) as error:
            raise self._error(sample_id, error) from error
        if len(data) != size:
            raise self._error(sample_id, f"the tar ends after {len(data)} of the image's {size} bytes")
        if data[:2] != b"\xff\xd8" or data[-2:] != b"\xff\xd9":
            raise self._error(sample_id, f"the {size} bytes at {offset} are not a whole JPEG: the tar is damaged")
        return data

    def check(self, sample_id: int) -> bytes:
        """Read a sample as `read` does and compare it with the checksum taken when it was packed.

        Raises:
            IndexError: The id is outside the set.
            SampleError: Its file is missing, or the bytes differ.
        """
        data = self.read(sample_id)
        shard, row = self._place(sample_id)
        if zlib.crc32(data) != int(self._rows(shard)[row]["crc32"]):
            raise self._error(sample_id, "the bytes differ from those packed (CRC-32)")
        return data

    def sizes(self, ids: np.ndarray) -> np.ndarray:
        """Sizes of samples.

        Args:
            ids: int64[N].

        Returns:
            int32[N, 2]: height and width in pixels, as decoded.

        Raises:
            IndexError: An id is outside the set.
            SampleError: The index of a shard is missing or damaged.
        """
        rows = self._gather(ids)
        return np.stack([rows["height"], rows["width"]], axis=1).astype(np.int32)

    def labels(self, ids: np.ndarray) -> np.ndarray:
        """Labels of samples: int64[N] for ids int64[N], -1 where there is none; raises as `sizes` does."""
        return self._gather(ids)["label"].astype(np.int64)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """ROW[N] of samples, for ids int64[N]; raises as `sizes` does."""
        return self._gather(ids)

    def _gather(self, ids: np.ndarray) -> np.ndarray:
        """ROW[N] of ids int64[N]."""
        ids = np.asarray(ids, dtype=np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= self._total):
            wrong = int(ids[(ids < 0) | (ids >= self._total)][0])
            raise IndexError(f"sample id {wrong} is outside 0..{self._total - 1} of {self.path}")
        shards = np.searchsorted(self._ends, ids, side="right")
        order = np.argsort(shards, kind="stable")
        found, first = np.unique(shards[order], return_index=True)
        out = np.empty(len(ids), dtype=ROW)
        for shard, places in zip(found.tolist(), np.split(order, first[1:]), strict=False):
            try:
                out[places] = self._rows(shard)[ids[places] - self._starts[shard]]
            except (OSError, ValueError) as error:
                raise self._error(int(ids[places[0]]), error) from error
        return out

    def _place(self, sample_id: int) -> tuple[int, int]:
        if not 0 <= sample_id < self._total:
            raise IndexError(f"sample id {sample_id} is outside 0..{self._total - 1} of {self.path}")
        shard = int(np.searchsorted(self._ends, sample_id, side="right"))
        return shard, int(sample_id - self._starts[shard])

    def _open_tar(self, shard: int) -> _Tar:
        return _Tar(self.path / f"{self.manifest.records[shard].name}.tar")

    def _open_rows(self, shard: int) -> np.ndarray:
        record = self.manifest.records[shard]
        path = self.path / f"{record.name}.npy"
        return read_rows(path, record.samples, record.bytes)

    def _open_keys(self, shard: int) -> list[str]:
        data = (self.path / f"{self.manifest.records[shard].name}.idx").read_bytes()
        return [display(key) for key in idx_keys(data)]

    def _error(self, sample_id: int, cause: Exception | str) -> SampleError:
        if isinstance(cause, OSError):
            name = Path(cause.filename).name if cause.filename else self.locate(sample_id)[0]
            cause = f"cannot read {name}: {cause.strerror}"
        return SampleError(sample_id, *self.locate(sample_id), str(cause))


def read_rows(path: Path, samples: int, tar_bytes: int) -> np.ndarray:
    """ROW[samples] of a shard's `.npy`.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not the index of a tar of `samples` images and `tar_bytes` bytes.
    """
    return rows_of_index(path.read_bytes(), path.name, samples, tar_bytes)


def rows_of_index(data: bytes, name: str, samples: int, tar_bytes: int) -> np.ndarray:
    """`read_rows` of a file's bytes; `name` is for the errors."""
    header = npy_header(samples)
    try:
        # NumPy parses a header with `ast`, which fails at random when threads do so at once (CPython 3.11): one
        # as we write it needs no parsing
        if data.startswith(header) and len(data) == len(header) + samples * ROW.itemsize:
            rows = np.frombuffer(data, ROW, offset=len(header))
        else:
            with _PARSING:
                rows = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # NumPy's parser of the header raises whatever the damage makes it raise
        raise ValueError(f"{name} is damaged: {str(error).splitlines()[0]}") from None
    if rows.dtype != ROW or rows.shape != (samples,):
        raise ValueError(f"{name} is damaged: {rows.dtype} {rows.shape} in place of {samples} rows")
    # In two steps: the sum of a damaged offset and a size may wrap round.
    if samples and (rows["offset"].max() > tar_bytes or (rows["offset"] + rows["size"]).max() > tar_bytes):
        raise ValueError(f"{name} is damaged: it points beyond the tar's {tar_bytes} bytes")
    return rows


def _open_manifest(path: Path) -> Manifest:
    try:
        return read_manifest(path / MANIFEST)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ShardSetError(f"cannot read {path / MANIFEST}: {error.strerror}") from None
    command = f"fastmoco-shard --src FOLDER_OF_IMAGES --out {path}"
    if not path.is_dir():
        raise ShardSetError(f"no shard set at {path}: there is no such folder; to make one: {command}")
    if (path / "packing.partial").exists() or any(path.glob("shard-*.json")):
        raise ShardSetError(
            f"no {MANIFEST} in {path}, but an unfinished packing; run the same fastmoco-shard command again"
            f" (it goes on where it stopped): {command}"
        )
    if any(path.glob("*.tar")):
        raise ShardSetError(f"no {MANIFEST} in {path}, but tars; to make them a set: fastmoco-shard index {path}")
    raise ShardSetError(f"no {MANIFEST} in {path}, so it is no shard set; to make one: {command}")
