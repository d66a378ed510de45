"""Images in the rows of files: where their bytes are, so that they can be read one by one in the order of the plan.

A row group of a Parquet file can be read only as a whole, and the order of a packing is random. So each file is read
forwards once, by tasks like those of shards, before any shard is packed. An image whose bytes lie in the file as they
are, as in files of Arrow and in Parquet without compression, is read there. All others are copied, one after the other,
into a file in the output's working folder, which is removed when the set is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

from shards.errors import PackError
from shards.packing import executors
from shards.packing.plan import FAULT, OFFSETS, ORDER, STAGED, WORK, Plan
from shards.packing.progress import Display
from shards.packing.running import run_tasks
from shards.packing.sources.embedded import EmbeddedSource, Part
from shards.packing.sources.rows import Table, cause, is_damage, leaf, opened
from shards.packing.task import Done, Event, Progress, Work, Written
from shards.storage.base import Store
from shards.storage.files import sweep
from shards.storage.network import Network
from shards.storage.places import is_url, joined
from shards.storage.store import open_place
from shards.words import counted, display, human_bytes

_PLACE = np.dtype([("offset", "<i8"), ("size", "<i8"), ("kind", "u1")])
_IN_SOURCE, _COPIED, _AT_FAULT, _UNUSED = range(4)  # of an image at fault, `offset` is the number of the reason
_GAP = 1 << 20  # bytes between two images of a file in which the next one is looked for
_PAGE = 1 << 12  # and in which it mostly is: the header of a page
_KEY = 64  # bytes of an image that are looked for first
_TRIES = 16  # images in a row that are not found in the file before the others are not looked for


@dataclass(frozen=True)
class StagePart(Work):
    """Reads one part of a source."""

    kind: str
    part: Part
    column: str
    folder: str  # in the output
    wanted: tuple[int, ...] | None = None  # rows in the part; None: all

    @property
    def name(self) -> str:
        """The file, and its rows if there are more parts of it."""
        return f"{display(self.part.path)} from row {self.part.first:,}" if self.part.first else display(self.part.path)

    def steps(self, store: Store, report_every: float) -> Iterator[Event]:
        """See Work.steps."""
        images, places = (store.partial(name) for name in self.files)
        try:
            with ExitStack() as stack:
                place = joined(self.src, os.fsdecode(self.part.path))
                table = stack.enter_context(opened(self.kind, place))
                reading = _Reading(
                    self.part,
                    stack.enter_context(open_place(place)),
                    stack.enter_context(open(images, "wb", buffering=0)),
                    None if self.wanted is None else frozenset(self.wanted),
                    table.bytes_of(self.column)[1],
                )
                yield from reading.run(table, self.column, report_every)
            with open(places, "wb") as file:
                np.save(file, reading.places)
                file.write(json.dumps(reading.reasons).encode())
            yield Written()
            names = dict(zip(self.files, (images, places), strict=True))
            if not images.stat().st_size:
                images.unlink()
                del names[self.files[0]]
            store.put(names)
            yield Done(self.number)
        finally:
            for path in (images, places):
                path.unlink(missing_ok=True)

    @property
    def files(self) -> tuple[str, str]:
        """Names of the images that are copied, and of the places of all; the second one says that both are there."""
        stem = f"{self.folder}/{self.number:06d}"
        return f"{stem}.images", f"{stem}.places"


@dataclass
class _Reading:
    """The state of reading one part."""

    part: Part
    source: BinaryIO
    copies: BinaryIO
    wanted: frozenset[int] | None
    in_place: bool  # whether images may lie in the file as they are
    reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.places = np.zeros(self.part.rows, _PLACE)
        self.places["kind"] = _UNUSED
        self._finder = _Finder(self.source)
        self._copied = 0

    def run(self, table: Table, column: str, report_every: float) -> Iterator[Event]:
        """Read the part; damage costs the rest of its group of rows."""
        groups = [None] if self.part.groups is None or table.groups is None else self.part.groups
        row, reported, images, size = 0, time.monotonic(), 0, 0
        for group in groups:
            end = self.part.rows if group is None or table.groups is None else row + table.groups[group]
            if self.wanted is not None and group is not None and self.wanted.isdisjoint(range(row, end)):
                row = end
                continue
            try:
                for batch in table.batches([column], None if group is None else [group]):
                    for value in leaf(batch, column):
                        if row < end and (self.wanted is None or row in self.wanted):
                            images += 1
                            size += self._place(row, value)
                        row += 1
                    if time.monotonic() - reported > report_every:
                        yield Progress(images, size, 0)
                        images, size, reported = 0, 0, time.monotonic()
            except Exception as error:
                from pyarrow import ArrowException

                if not (isinstance(error, OSError | ArrowException) and is_damage(error)):
                    raise
                self._fault(slice(row, end), f"damaged: {cause(error)}")
            row = end
        yield Progress(images, size, 0)

    def _place(self, row: int, value: object) -> int:
        """Record where the image of a row is; returns its size."""
        data = value.as_py()  # type: ignore[attr-defined]
        if not data:
            self._fault(row, "no image: the row holds null" if data is None else "no image: the row holds no bytes")
            return 0
        offset, kind = self._finder.find(data) if self.in_place else -1, _IN_SOURCE
        if offset < 0:
            offset, kind = self._copied, _COPIED
            left = memoryview(data)
            while left:
                left = left[self.copies.write(left) :]
            self._copied += len(data)
        self.places[row] = offset, len(data), kind
        return len(data)

    def _fault(self, rows: int | slice, reason: str) -> None:
        if reason not in self.reasons:
            self.reasons.append(reason)
        self.places[rows] = self.reasons.index(reason), 0, _AT_FAULT


class _Finder:
    """Finds images in a file that holds them in order, as they are, with other bytes between them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._after, self._gap, self._missed, self._found = file, 0, 0, 0, False

    def find(self, data: bytes) -> int:
        """Offset of the data behind those found before; -1 if they are not near."""
        if self._missed == _TRIES and not self._found:
            return -1
        at = self._after + self._gap  # the gap is often the same: the length of the next image
        if self._read(at, len(data)) != data:
            for gap in (_PAGE, _GAP):
                place = _search(self._read(self._after, len(data) + gap), data)
                if place >= 0:
                    break
            else:
                self._missed += 1
                return -1
            at = self._after + place
        self._found, self._gap, self._after = True, at - self._after, at + len(data)
        return at

    def _read(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(length)


def _search(window: bytes, data: bytes) -> int:
    """Place of the data in the window, or -1; ten times as fast as to `find` all the data, which is prepared for."""
    place = window.find(data[:_KEY])
    while place >= 0 and window[place : place + len(data)] != data:
        place = window.find(data[:_KEY], place + 1)
    return place


def stage(
    source: EmbeddedSource,
    store: Store,
    plan: Plan,
    network: Network,
    run: executors.Run,
    shown: Display,
    check: Callable[[], None],
) -> str:
    """Find or copy the images of a plan; parts that an earlier run has read are kept.

    Returns:
        The folder in the store with the order that says where the images are.

    Raises:
        PackError: A part cannot be read, or the disk has no room for the copies.
        OSError: The store cannot be written.
    """
    folder = f"{WORK}/{STAGED}{plan.identity[:16]}"
    for name in store.names(WORK):
        if name.startswith(STAGED) and f"{WORK}/{name}" != folder:
            store.remove(f"{WORK}/{name}")
    (store.scratch / folder).mkdir(parents=True, exist_ok=True)
    sweep(store.scratch / folder)
    wanted = _wanted(store, source.parts) if plan.images < plan.source["images"] else None
    there = store.sizes(folder)
    tasks = []
    for number, part in enumerate(source.parts):
        rows = None if wanted is None else tuple(sorted(wanted[number]))
        task = StagePart(
            source.root, store.url, number, source.kind, part, source.columns.content, folder, rows, network=network
        )
        if rows != () and Path(task.files[1]).name not in there:
            tasks.append(task)
    if tasks:
        share = plan.images / plan.source["images"]
        _check_room(source, store, share)
        shown.note(f"reading {reading_text(source, share)}")
        shown.begin(sum(t.part.rows if t.wanted is None else len(t.wanted) for t in tasks), what="read")
        try:
            run_tasks(tasks, run, {}, shown, check, "file")
        finally:
            shown.stop()
    _resolve(source, store, folder)
    return folder


def reading_text(source: EmbeddedSource, share: float) -> str:
    """How the images are read, of which `share` are packed."""
    files = counted(len({part.path for part in source.parts}), "file")
    if not source.staged:
        return f"{files}, not compressed: images are read in place"
    copies = human_bytes(source.staged * share)
    return f"{files}, compressed: the output needs {copies} more for copies of the images until the set is complete"


def _check_room(source: EmbeddedSource, store: Store, share: float) -> None:
    if store.local is None:
        return
    need, free = source.staged * share, shutil.disk_usage(store.local).free
    if need > free:
        raise PackError(
            f"{display(store.url)} needs room for copies of the images, {human_bytes(need)}, until the set is complete,"
            f" and for the set itself; {human_bytes(free)} are free; name an --out on a larger disk, or use --limit"
        )


def _entries(store: Store) -> Iterator[tuple[list[bytes], int]]:
    """The fields of all entries of the plan's order, with the number of their shard."""
    places = array("Q", store.read(f"{WORK}/{OFFSETS}"))
    with store.open(f"{WORK}/{ORDER}") as file:
        for shard, (start, end) in enumerate(pairwise(places)):
            fields = file.read(end - start).split(b"\0")
            for at in range(0, len(fields) - 1, 5):
                yield fields[at : at + 5], shard


def _wanted(store: Store, parts: list[Part]) -> list[set[int]]:
    """The rows of each part that the plan packs."""
    find = _Parts(parts)
    wanted: list[set[int]] = [set() for _ in parts]
    for (_, _, row, path, _), _ in _entries(store):
        number, place = find(path, int(row))
        wanted[number].add(place)
    return wanted


class _Parts:
    """Finds the part of a row of a file."""

    def __init__(self, parts: list[Part]) -> None:
        self._numbers: dict[bytes, list[int]] = defaultdict(list)
        for number, part in enumerate(parts):
            self._numbers[part.path].append(number)
        self._firsts = {path: [parts[number].first for number in numbers] for path, numbers in self._numbers.items()}

    def __call__(self, path: bytes, row: int) -> tuple[int, int]:
        """Number of the part, and the row in it."""
        firsts = self._firsts[path]
        place = int(np.searchsorted(firsts, row, "right")) - 1 if len(firsts) > 1 else 0
        return self._numbers[path][place], row - firsts[place]


def _resolve(source: EmbeddedSource, store: Store, folder: str) -> None:
    """Write the plan's order with the places of the images."""
    find = _Parts(source.parts)
    out = store.url if is_url(store.url) else os.path.abspath(store.url)
    known: dict[int, tuple[list[tuple[int, int, int]], list[str], bytes]] = {}
    offsets, shards = array("Q", (0,)), 0
    paths = {name: store.partial(f"{folder}/{name}") for name in (ORDER, OFFSETS)}
    with open(paths[ORDER], "wb") as file:
        for (label, _, row, path, member), shard in _entries(store):
            if shard > shards:
                offsets.append(file.tell())
                shards = shard
            number, at = find(path, int(row))
            if number not in known:
                stem = f"{folder}/{number:06d}"
                known[number] = (*_read_places(store, f"{stem}.places"), os.fsencode(f"{out}/{stem}.images"))
            places, reasons, copies = known[number]
            offset, size, kind = places[at]
            place = b"" if kind == _IN_SOURCE else copies
            if kind == _AT_FAULT:
                offset, size, place = FAULT, -1, reasons[offset].replace("\0", " ").encode()
            file.write(b"%s\0%d\0%d\0%s\0%s\0%s\0" % (label, size, offset, path, member, place))
        offsets.append(file.tell())
    paths[OFFSETS].write_bytes(struct.pack(f"<{len(offsets)}Q", *offsets))
    store.put({f"{folder}/{name}": path for name, path in paths.items()})


def _read_places(store: Store, name: str) -> tuple[list[tuple[int, int, int]], list[str]]:
    with store.open(name) as file:
        places = np.load(file)
        return places.tolist(), json.loads(file.read())
