"""One shard's work: read its part of the plan, check and encode its images, write it."""

from __future__ import annotations

import errno
import os
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.encode import Rejected, encode
from shards.files import display
from shards.manifest import Quarantined, ShardRecord
from shards.options import EncodeOptions
from shards.plan import Entry, read_shard
from shards.writer import ShardWriter

MAX_FILE = 1 << 30  # bytes; a larger file is no photograph
# One file's own fault: it is left out. Other errors (a share that went away, no descriptors) fail the shard.
_FILE_ERRNOS = frozenset(
    (
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EIO,
    )
)


@dataclass(frozen=True)
class Task:
    """What a worker has to know to pack one shard."""

    src: Path
    out: Path
    shard: int
    plan: str
    encoding: EncodeOptions


class Event:
    """A sign of life."""


@dataclass(frozen=True)
class Progress(Event):
    """Work done since the last report: images looked at, their bytes, those left out; negative where it was lost."""

    images: int
    bytes: int
    quarantined: int

    def __add__(self, other: Progress) -> Progress:
        return Progress(self.images + other.images, self.bytes + other.bytes, self.quarantined + other.quarantined)

    def __neg__(self) -> Progress:
        return Progress(-self.images, -self.bytes, -self.quarantined)


@dataclass(frozen=True)
class Packed(Event):
    """A shard that is whole and on disk."""

    shard: int
    record: ShardRecord


@dataclass(frozen=True)
class Failed(Event):
    """A shard that could not be packed; `fatal` where the others would fail as well."""

    shard: int
    cause: str
    fatal: bool = False


def pack_shard(task: Task, report_every: float = 0.2) -> Iterator[Event]:
    """Pack one shard; yields `Progress` every so many seconds, and `Packed` or `Failed` at the end."""
    try:
        yield from _pack(task, _entries(task), report_every)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cause = f"the disk of {display(str(task.out))} is full" if full else str(error)
        yield Failed(task.shard, cause, fatal=full or error.errno in (errno.EROFS, errno.EMFILE))
    except Exception as error:  # a fault of ours must name its shard as well
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(place.filename)}:{place.lineno}"
        yield Failed(task.shard, f"{type(error).__name__} at {where}: {error}")


def _entries(task: Task) -> list[Entry]:
    try:
        return read_shard(task.out, task.shard)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            error.errno,
            "no plan here; on several machines --out has to be a folder that they share, or a URL",
            str(task.out),
        ) from error


def _pack(task: Task, entries: list[Entry], report_every: float) -> Iterator[Event]:
    root = os.fsencode(task.src)
    quarantine: list[Quarantined] = []
    images = size = left_out = 0
    reported = time.monotonic()
    with ShardWriter(task.out, task.shard) as writer:
        for entry in entries:
            images += 1
            try:
                data = _read(os.path.join(root, entry.path), root)
                size += len(data)
                found = encode(data, task.encoding)
            except Rejected as rejected:
                quarantine.append(Quarantined(display(entry.path), str(rejected)))
                left_out += 1
            else:
                writer.add(found.jpeg, found.height, found.width, entry.label)
            if time.monotonic() - reported > report_every:
                yield Progress(images, size, left_out)
                images = size = left_out = 0
                reported = time.monotonic()
        record = writer.commit(task.plan, quarantine)
    yield Progress(images, size, left_out)
    yield Packed(task.shard, record)


def _read(path: bytes, root: bytes) -> bytes:
    """All of a file; Rejected where the fault is the file's own."""
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE:
                raise Rejected(f"too large: a file of {size:,} bytes")
            return file.readall() or b""
    except OSError as error:
        if error.errno in _FILE_ERRNOS and os.path.isdir(root):
            raise Rejected(f"cannot read: {error.strerror}") from None
        raise
