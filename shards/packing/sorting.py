"""External sorting of more records than fit into memory, by buckets on disk."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

_LENGTH = struct.Struct("<I")
_BUCKETS = 256
_BUFFERED = 32 << 20  # bytes kept in memory before they are written to the buckets' files
_SORTED = 32 << 20  # bytes sorted in memory at a time; a larger bucket is split into 256 again
_DEEPEST = 7  # last of the eight leading bytes, which are uniform


class BucketSort:
    """Sorts byte strings that begin with eight uniformly distributed bytes.

    Memory does not grow with their number. Nothing is written if all of them fit into the buffer.

    Args:
        folder: Existing folder for the buckets' files, on a disk with room for all records. The files are removed as
            they are read.
        depth: Index of the byte that selects the bucket; all bytes before it are equal.

    Raises:
        OSError: From any method: the disk is full or cannot be written.
    """

    def __init__(self, folder: Path, depth: int = 0) -> None:
        self._folder = folder
        self._depth = depth
        self._buffers = [bytearray() for _ in range(_BUCKETS)]
        self._buffered = 0

    def add(self, record: bytes) -> None:
        """Add a record."""
        buffer = self._buffers[record[self._depth]]
        buffer += _LENGTH.pack(len(record))
        buffer += record
        self._buffered += len(record)
        if self._buffered > _BUFFERED:
            self._flush()

    def _flush(self) -> None:
        for bucket, buffer in enumerate(self._buffers):
            if buffer:
                with open(self._path(bucket), "ab") as file:
                    file.write(buffer)
                buffer.clear()
        self._buffered = 0

    def _path(self, bucket: int) -> Path:
        return self._folder / f"bucket-{self._depth}-{bucket:02x}"

    def records(self) -> Iterator[bytes]:
        """All records in order; can be read once, as it frees them on the way."""
        # All in memory, or all on disk: else a bucket would be half a file and half a buffer.
        if any(self._path(bucket).exists() for bucket in range(_BUCKETS)):
            self._flush()
        for bucket, buffer in enumerate(self._buffers):
            path = self._path(bucket)
            size = os.path.getsize(path) if path.exists() else 0
            if size > _SORTED and self._depth < _DEEPEST:
                yield from self._split(path).records()
                continue
            if size:
                yield from _in_order(path.read_bytes())
                path.unlink()
            else:
                yield from _in_order(bytes(buffer))
                self._buffers[bucket] = bytearray()

    def _split(self, path: Path) -> BucketSort:
        """The records of one bucket's file, split by their next byte."""
        finer = BucketSort(self._folder, self._depth + 1)
        with open(path, "rb") as file:
            while length := file.read(_LENGTH.size):
                finer.add(file.read(_LENGTH.unpack(length)[0]))
        path.unlink()
        return finer


def _in_order(block: bytes) -> list[bytes]:
    found, place, end = [], 0, len(block)
    while place < end:
        start = place + _LENGTH.size
        place = start + _LENGTH.unpack_from(block, place)[0]
        found.append(block[start:place])
    found.sort()
    return found
