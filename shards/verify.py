"""Comparing a packed set with its own records: which file, and which sample, is not what was packed."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.index import BLOCK, ROW, idx_bytes, padded, sample_key
from shards.manifest import MANIFEST, Manifest, ShardRecord
from shards.reader import ShardSet, read_rows
from shards.store import LocalStore
from shards.writer import read_record, shard_files, tar_header

_CHUNK = 1 << 22


@dataclass(frozen=True)
class Problem:
    """Something that is not as it was packed: the file, the sample's key where it is one sample, and what."""

    file: str
    key: str | None
    cause: str

    def __str__(self) -> str:
        key = f" key {self.key}" if self.key else ""
        return f"{self.file}{key}: {self.cause}"


def verify(shard_set: ShardSet, workers: int) -> Iterator[list[Problem]]:
    """Compare every file of a set with its records; yields the problems of the manifest, then those of each shard.

    Args:
        shard_set: The set.
        workers: Threads; hashing frees the GIL.
    """
    folder, manifest = shard_set.path, shard_set.manifest
    yield _verify_manifest(folder, manifest)
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(lambda record: _verify_shard(folder, record), manifest.records)


def _verify_manifest(folder: Path, manifest: Manifest) -> list[Problem]:
    problems = []
    for name in ("samples", "bytes"):
        stated, found = getattr(manifest, name), sum(getattr(record, name) for record in manifest.records)
        if stated != found:
            problems.append(Problem(MANIFEST, None, f"{name} is {stated}, but the shards have {found}"))
    known = {record.name for record in manifest.records}
    for path in sorted(folder.glob("shard-*.tar")):
        if path.stem not in known:
            problems.append(Problem(path.name, None, f"not in {MANIFEST}"))
    return problems


def _verify_shard(folder: Path, record: ShardRecord) -> list[Problem]:
    shard = int(record.name[-6:])
    paths = {suffix: folder / name for suffix, name in shard_files(shard).items()}
    problems = list(_verify_record(paths[".json"], record))
    if not record.samples:
        return problems
    keys = f"keys {sample_key(shard, 0)} to {sample_key(shard, record.samples - 1)}"
    try:
        intact = _sha256(paths[".tar"]) == record.sha256
    except OSError as error:
        return [*problems, Problem(paths[".tar"].name, None, f"cannot read: {error.strerror} ({keys})")]
    rows, found = _verify_rows(paths, shard, record, intact)
    problems += found
    if not intact:
        problems += list(_damaged_samples(paths[".tar"], shard, record, rows)) or [
            Problem(paths[".tar"].name, None, "the sha256 differs, though no image does")
        ]
    if rows is not None:
        problems += _verify_idx(paths[".idx"], shard, rows)
    return problems


def _verify_record(path: Path, record: ShardRecord) -> Iterator[Problem]:
    try:
        own, _ = read_record(LocalStore(path.parent), int(record.name[-6:]))
    except OSError as error:
        yield Problem(path.name, None, f"cannot read: {error.strerror}")
    except ValueError as error:
        yield Problem(path.name, None, f"damaged: {error}")
    else:
        if own != record:
            yield Problem(path.name, None, f"differs from the shard's record in {MANIFEST}")


def _verify_rows(
    paths: dict[str, Path], shard: int, record: ShardRecord, intact: bool
) -> tuple[np.ndarray | None, list[Problem]]:
    """The rows to go by, and what is wrong with those on disk."""
    name = paths[".npy"].name
    rows = None
    try:
        if hashlib.sha256(paths[".npy"].read_bytes()).hexdigest() == record.index_sha256:
            return read_rows(paths[".npy"], record.samples, record.bytes), []
        rows = read_rows(paths[".npy"], record.samples, 2**63)
        problem = Problem(name, None, "differs from what was packed (sha256)")
    except OSError as error:
        problem = Problem(name, None, f"cannot read: {error.strerror}")
    except ValueError as error:
        problem = Problem(name, None, str(error))
    if not intact:
        return rows, [problem]
    rebuilt = rows_of_tar(paths[".tar"])
    if rows is None:
        return rebuilt, [problem]
    differing = np.flatnonzero(rows != rebuilt).tolist()
    named = [
        Problem(name, sample_key(shard, row), f"row is {rows[row].tolist()}, should be {rebuilt[row].tolist()}")
        for row in differing
    ]
    return rebuilt, named or [problem]


def _verify_idx(path: Path, shard: int, rows: np.ndarray) -> list[Problem]:
    try:
        found = path.read_bytes()
    except OSError as error:
        return [Problem(path.name, None, f"cannot read: {error.strerror}")]
    expected = idx_bytes(shard, rows)
    if found == expected:
        return []
    lines, should = found.split(b"\n"), expected.split(b"\n")
    if len(lines) != len(should):
        return [Problem(path.name, None, f"has {len(lines) - 1} lines, should have {len(should) - 1}")]
    problems = []
    for number, (line, right) in enumerate(zip(lines, should, strict=True)):
        if line != right:
            key = sample_key(shard, number - 1) if number else None
            text = f"line {number + 1} is {line.decode('ascii', 'replace')!r}, should be {right.decode()!r}"
            problems.append(Problem(path.name, key, text))
    return problems


def _damaged_samples(path: Path, shard: int, record: ShardRecord, rows: np.ndarray | None) -> Iterator[Problem]:
    size = path.stat().st_size
    if size != record.bytes:
        yield Problem(path.name, None, f"has {size:,} bytes, should have {record.bytes:,}")
    if rows is None:
        return
    with open(path, "rb") as file:
        for row, (offset, length, _, _, label, crc) in enumerate(rows.tolist()):
            key = sample_key(shard, row)
            text = b"" if label < 0 else str(label).encode()
            tail = b"" if label < 0 else tar_header(f"{key}.cls", len(text)) + text + bytes(BLOCK - len(text))
            found = os.pread(file.fileno(), BLOCK + padded(length) + len(tail), max(0, offset - BLOCK))
            if len(found) != BLOCK + padded(length) + len(tail):
                yield Problem(path.name, key, "the tar ends before or in this sample")
            elif zlib.crc32(found[BLOCK : BLOCK + length]) != crc:
                yield Problem(path.name, key, "the image's bytes differ from those packed (CRC-32)")
            elif found[:BLOCK] != tar_header(f"{key}.jpg", length):
                yield Problem(path.name, key, "the tar header before the image is damaged")
            elif found[BLOCK + padded(length) :] != tail:
                yield Problem(path.name, key, "the label after the image is damaged")


def rows_of_tar(path: Path) -> np.ndarray:
    """ROW[N] of a whole tar of KEY.jpg and KEY.cls members, read from the tar itself."""
    from PIL import Image

    rows: list[list[int]] = []
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            data = file.read() if file else b""
            if member.name.endswith(".cls"):
                rows[-1][4] = int(data)
            else:
                with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
                    width, height = image.size
                rows.append([member.offset_data, len(data), width, height, -1, zlib.crc32(data)])
    return np.array([tuple(row) for row in rows], dtype=ROW)


def _sha256(path: Path) -> str:
    state = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()
