"""The work of a process or Ray task, such as packing a shard: its images are read, checked, encoded and written."""

from __future__ import annotations

import errno
import os
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

from shards.format.layout import shard_name
from shards.format.manifest import Quarantined, ShardRecord
from shards.format.writer import ShardWriter
from shards.images.deep import DECODER
from shards.images.encode import Rejected, encode
from shards.images.options import EncodeOptions
from shards.packing.fetch import fetch_each
from shards.packing.plan import WORK, Entry, read_left_out, read_shard
from shards.storage.base import Store
from shards.storage.network import Network, set_current
from shards.storage.places import is_url
from shards.storage.store import open_store
from shards.words import display, in_words


@dataclass(frozen=True)
class Work(ABC):
    """What a worker needs for one piece of work, which makes files of the output.

    Attributes:
        src: Base of relative paths of the source.
        out: Place of the output's Store.
        number: Number of the piece.
        network: Settings of the connections.
    """

    src: str
    out: str
    number: int
    network: Network = field(default_factory=Network, kw_only=True)

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the piece, for messages."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Packages that decide the bytes of the result, besides Pillow."""
        return ()

    @abstractmethod
    def steps(self, store: Store, report_every: float) -> Iterator[Event]:
        """Do the work; yields `Progress`, `Written`, and at the end `Done`."""


@dataclass(frozen=True)
class Task(Work):
    """What a worker needs to pack one shard."""

    plan: str
    encoding: EncodeOptions
    leave_out: bool = False  # images that cannot be reached
    names: bool = True  # kept in the set
    kind: str = ""  # of the source
    order: str = WORK  # folder with the order of the plan
    compared: bool = False  # with other images, so that some are left out
    first: int = 0  # number of the plan's first shard

    @property
    def name(self) -> str:
        """The shard's name."""
        return shard_name(self.number)

    @property
    def packages(self) -> tuple[str, ...]:
        """See Work.packages."""
        return (DECODER,) if self.encoding.keep_16_bit else ()

    def steps(self, store: Store, report_every: float) -> Iterator[Event]:
        """See Work.steps."""
        return _pack(self, store, entries_of(self, store, self.order, self.first), report_every)


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
class Done(Event):
    """A piece of work is complete and on disk."""

    number: int


@dataclass(frozen=True)
class Packed(Done):
    """A shard is complete and on disk."""

    record: ShardRecord


@dataclass(frozen=True)
class Failed(Event):
    """A piece of work failed; `fatal` if others would fail as well.

    `unreachable`: it failed because of a store or the network.
    """

    number: int
    cause: str
    fatal: bool = False
    unreachable: bool = False


def perform(work: Work, report_every: float = 0.2) -> Iterator[Event]:
    """Do a piece of work; yields `Progress` every `report_every` seconds, `Written`, at the end `Done` or `Failed`.

    After `Written`, another thread may continue the iteration.
    """
    set_current(work.network)
    try:
        yield from work.steps(open_store(work.out), report_every)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cause = f"the disk of {display(work.out)} is full" if full else in_words(error)
        fatal = full or error.errno in (errno.EROFS, errno.EMFILE)
        yield Failed(work.number, cause, fatal, unreachable=is_url(str(error.filename)))
    except Exception as error:  # a defect of the program must name its shard too
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(place.filename)}:{place.lineno}"
        yield Failed(work.number, f"{type(error).__name__} at {where}: {error}")


def entries_of(work: Work, store: Store, order: str, first: int = 0) -> list[Entry]:
    """The images of the shard of that number, from the folder with the order, whose first shard is `first`."""
    try:
        return read_shard(store, work.number - first, order)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            error.errno,
            "no plan here; with several machines, --out has to be a shared folder or a URL",
            work.out,
        ) from error


def _pack(task: Task, store: Store, entries: list[Entry], report_every: float) -> Iterator[Event]:
    copies = read_left_out(store, task.plan, task.number - task.first) if task.compared else {}
    quarantine = [Quarantined(entries[row].source, reason) for row, reason in copies.items()]
    entries = [entry for row, entry in enumerate(entries) if row not in copies]
    images = left_out = len(copies)
    size = 0
    reported = time.monotonic()
    with ShardWriter(store, task.number, task.names) as writer:
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
                writer.add(found, entry.label, entry.source, entry.url)
            if time.monotonic() - reported > report_every:
                yield Progress(images, size, left_out)
                images = size = left_out = 0
                reported = time.monotonic()
        yield Progress(images, size, left_out)
        yield Written()
        record = writer.commit(task.plan, quarantine)
    yield Packed(task.number, record)
