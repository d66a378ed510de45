"""Reading one part of a file that holds images in its rows: they are found in the file, or copied."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from shards.packing.sources.embedded import Part
from shards.packing.sources.rows import Table, cause, is_damage, leaf, opened
from shards.packing.task import Done, Event, Progress, Work, Written
from shards.storage.base import Store
from shards.storage.places import joined
from shards.storage.store import open_place
from shards.words import display

_PLACE = np.dtype([("offset", "<i8"), ("size", "<i8"), ("kind", "u1")])
IN_SOURCE, _COPIED, AT_FAULT, _UNUSED = range(4)  # of an image at fault, `offset` is the number of the reason
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
        offset, kind = self._finder.find(data) if self.in_place else -1, IN_SOURCE
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
        self.places[rows] = self.reasons.index(reason), 0, AT_FAULT


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
