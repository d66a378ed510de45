"""Reading one part of a file that holds images in its rows: they are found in the file, or copied."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, BinaryIO

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
                    table.mapped,
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
    mapped: Any  # its bytes as a pyarrow.Buffer; None at a URL
    copies: BinaryIO
    wanted: frozenset[int] | None
    in_place: bool  # whether images may lie in the file as they are
    reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.places = np.zeros(self.part.rows, _PLACE)
        self.places["kind"] = _UNUSED
        self._finder = _Finder(self._read)
        self._copied = 0

    def _read(self, offset: int, length: int) -> Any:
        if self.mapped is not None:
            return self.mapped[offset : offset + length]
        import pyarrow

        self.source.seek(offset)
        return pyarrow.py_buffer(self.source.read(length))

    def run(self, table: Table, column: str, report_every: float) -> Iterator[Event]:
        """Read the part; damage costs the rest of its group of rows."""
        groups = [None] if self.part.groups is None or table.groups is None else self.part.groups
        row, reported, images, size = 0, time.monotonic(), 0, 0
        for group in groups:
            end = self.part.rows if group is None or table.groups is None else row + table.groups[group]
            if self.wanted is not None and group is not None and self.wanted.isdisjoint(range(row, end)):
                row = end
                continue
            self._finder.after = table.start_of(column, group)
            try:
                for batch in table.batches([column], None if group is None else [group]):
                    if row < end:
                        there = _Values(leaf(batch, column)[: end - row])
                        images += self._place(row, there)
                        size += int(there.sizes.sum())
                    row += batch.num_rows
                    if time.monotonic() - reported > report_every:
                        yield Progress(images, size, 0)
                        images, size, reported = 0, 0, time.monotonic()
            except Exception as error:
                from pyarrow import ArrowException

                if not (isinstance(error, OSError | ArrowException) and is_damage(error)):
                    raise
                self._fault(np.arange(row, end), f"damaged: {cause(error)}")
            row = end
        yield Progress(images, size, 0)

    def _place(self, first: int, values: _Values) -> int:
        """Record where the images of rows are, the first of which has that number; returns how many are wanted."""
        numbers = np.arange(len(values.sizes))
        if self.wanted is not None:
            numbers = numbers[[first + number in self.wanted for number in numbers.tolist()]]
        there, filled = values.there[numbers], values.sizes[numbers] > 0
        self._fault(first + numbers[~there], "no image: the row holds null")
        self._fault(first + numbers[there & ~filled], "no image: the row holds no bytes")
        images = numbers[filled]
        found = self._found(values, images)
        self.places["size"][first + images] = values.sizes[images]
        self.places["offset"][first + images] = found
        self.places["kind"][first + images] = np.where(found < 0, _COPIED, IN_SOURCE)
        self._copy(first, values, images[found < 0])
        return len(numbers)

    def _found(self, values: _Values, images: np.ndarray) -> np.ndarray:
        """Offsets of images in the file, -1 for those that have to be copied."""
        if not self.in_place or not len(images):
            return np.full(len(images), -1)
        if self.mapped is not None:
            inside = values.data.address - self.mapped.address
            if 0 <= inside <= self.mapped.size - values.data.size:  # an Arrow file's: not read, but mapped
                return inside + values.starts[images]
        return np.array([self._finder.find(values[number]) for number in images.tolist()])

    def _copy(self, first: int, values: _Values, images: np.ndarray) -> None:
        """Copy images; those that lie one behind the other at once."""
        if not len(images):
            return
        starts, sizes = values.starts[images], values.sizes[images]
        ends = starts + sizes
        self.places["offset"][first + images] = self._copied + np.cumsum(sizes) - sizes
        breaks = [0, *(np.flatnonzero(starts[1:] != ends[:-1]) + 1).tolist(), len(images)]
        for begin, end in pairwise(breaks):
            left = memoryview(values.data)[starts[begin] : ends[end - 1]]
            while left:
                left = left[self.copies.write(left) :]
        self._copied += int(sizes.sum())

    def _fault(self, rows: np.ndarray, reason: str) -> None:
        if not len(rows):
            return
        if reason not in self.reasons:
            self.reasons.append(reason)
        self.places[rows] = self.reasons.index(reason), 0, AT_FAULT


class _Values:
    """Values of a column of bytes, as Arrow keeps them: one behind the other.

    Attributes:
        data: The pyarrow.Buffer that holds them.
        starts: Their offsets in it.
        sizes: Their sizes in bytes, 0 for null.
        there: Whether they are not null.
    """

    def __init__(self, values: Any) -> None:
        import pyarrow as pa

        if not (pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type)):
            values = pa.array(values.to_pylist(), pa.large_binary())  # of a fixed size, or views
        bits, offsets, data = values.buffers()
        width = np.dtype("<i4" if pa.types.is_binary(values.type) else "<i8")
        places = np.frombuffer(offsets, width, len(values) + 1, values.offset * width.itemsize).astype(np.int64)
        self.data = pa.py_buffer(b"") if data is None else data
        self.starts = places[:-1]
        self.there = np.ones(len(values), bool)
        if bits is not None:  # not is_valid(): it loads Arrow's functions, which takes longer than a part
            flags = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")
            self.there = flags[values.offset : values.offset + len(values)].astype(bool)
        self.sizes = np.where(self.there, np.diff(places), 0)

    def __getitem__(self, number: int) -> Any:
        """One value as a pyarrow.Buffer."""
        return self.data.slice(int(self.starts[number]), int(self.sizes[number]))


class _Finder:
    """Finds images in a file that holds them in order, as they are, with other bytes between them.

    Args:
        read: The bytes at an offset of the file, of a length, as a pyarrow.Buffer; fewer at its end.

    Attributes:
        after: Offset behind which the next image is.
    """

    def __init__(self, read: Callable[[int, int], Any]) -> None:
        self.after = 0
        self._read, self._gap, self._missed, self._found = read, 0, 0, False

    def find(self, image: Any) -> int:
        """Offset of an image, given as a pyarrow.Buffer, behind those found before; -1 if it is not near."""
        if self._missed == _TRIES and not self._found:
            return -1
        at = self.after + self._gap  # the gap is often the same: the length of the next image
        if not self._read(at, image.size).equals(image):
            data = image.to_pybytes()
            for gap in (_PAGE, _GAP):
                place = _search(self._read(self.after, len(data) + gap).to_pybytes(), data)
                if place >= 0:
                    break
            else:
                self._missed += 1
                return -1
            at = self.after + place
        self._found, self._gap, self.after = True, at - self.after, at + image.size
        return at


def _search(window: bytes, data: bytes) -> int:
    """Place of the data in the window, or -1; ten times as fast as to `find` all the data, which is prepared for."""
    place = window.find(data[:_KEY])
    while place >= 0 and window[place : place + len(data)] != data:
        place = window.find(data[:_KEY], place + 1)
    return place
