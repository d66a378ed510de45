"""Packing one shard: read its part of the plan, check and encode its images, write it."""

from __future__ import annotations

import errno
import os
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field

from shards.format.manifest import Quarantined, ShardRecord
from shards.format.writer import ShardWriter
from shards.images.encode import Rejected, encode
from shards.images.options import EncodeOptions
from shards.packing.fetch import fetch_each
from shards.packing.plan import Entry, read_shard
from shards.storage.base import Store
from shards.storage.network import Network, set_current
from shards.storage.places import is_url
from shards.storage.store import open_store
from shards.words import display, in_words


@dataclass(frozen=True)
class Task:
    """What a worker needs to pack one shard."""

    src: str
    out: str  # place of a Store
    shard: int
    plan: str
    encoding: EncodeOptions
    network: Network = field(default_factory=Network)
    leave_out: bool = False  # images that cannot be reached
    names: bool = True  # kept in the set
    kind: str = ""  # of the source


class Event:
    """A report from a worker; on its own, a sign of life."""


@dataclass(frozen=True)
class Progress(Event):
    """Work since the last report: images processed, their bytes, images left out; negative if work was lost."""

    images: int
    bytes: int
    quarantined: int

    def __add__(self, other: Progress) -> Progress:
        return Progress(self.images + other.images, self.bytes + other.bytes, self.quarantined + other.quarantined)

    def __neg__(self) -> Progress:
        return Progress(-self.images, -self.bytes, -self.quarantined)


@dataclass(frozen=True)
class Written(Event):
    """All images of a shard have been written; what remains is to wait for the disk or store."""


@dataclass(frozen=True)
class Packed(Event):
    """A shard is complete and on disk."""

    shard: int
    record: ShardRecord


@dataclass(frozen=True)
class Failed(Event):
    """A shard could not be packed; `fatal` if other shards would fail as well.

    `unreachable`: it failed because of a store or the network.
    """

    shard: int
    cause: str
    fatal: bool = False
    unreachable: bool = False


def pack_shard(task: Task, report_every: float = 0.2) -> Iterator[Event]:
    """Pack one shard; yields `Progress` every `report_every` seconds, `Written`, and at the end `Packed` or `Failed`.

    After `Written`, another thread may continue the iteration.
    """
    set_current(task.network)
    try:
        store = open_store(task.out)
        yield from _pack(task, store, _entries(task, store), report_every)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cause = f"the disk of {display(task.out)} is full" if full else in_words(error)
        fatal = full or error.errno in (errno.EROFS, errno.EMFILE)
        yield Failed(task.shard, cause, fatal, unreachable=is_url(str(error.filename)))
    except Exception as error:  # a defect of the program must name its shard too
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(place.filename)}:{place.lineno}"
        yield Failed(task.shard, f"{type(error).__name__} at {where}: {error}")


def _entries(task: Task, store: Store) -> list[Entry]:
    try:
        return read_shard(store, task.shard)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            error.errno,
            "no plan here; with several machines, --out has to be a shared folder or a URL",
            task.out,
        ) from error


def _pack(task: Task, store: Store, entries: list[Entry], report_every: float) -> Iterator[Event]:
    quarantine: list[Quarantined] = []
    images = size = left_out = 0
    reported = time.monotonic()
    with ShardWriter(store, task.shard, task.names) as writer:
        for entry, data in fetch_each(task.src, entries, task.leave_out, task.kind):
            images += 1
            try:
                if isinstance(data, Rejected):
                    raise data
                size += len(data)
                found = encode(data, task.encoding)
            except Rejected as rejected:
                quarantine.append(Quarantined(entry.source, str(rejected)))
                left_out += 1
            else:
                writer.add(found.jpeg, found.height, found.width, entry.label, entry.source)
            if time.monotonic() - reported > report_every:
                yield Progress(images, size, left_out)
                images = size = left_out = 0
                reported = time.monotonic()
        yield Progress(images, size, left_out)
        yield Written()
        record = writer.commit(task.plan, quarantine)
    yield Packed(task.shard, record)
