"""Labels from a file beside a source (`--labels`): a table of names and labels, or a ground truth by number."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping

from shards.errors import PackError
from shards.format.labels import one_form
from shards.format.manifest import Quarantined
from shards.packing.sources.fields import Fields, named_as_image, no_column
from shards.packing.sources.jsonl import JsonlSource
from shards.packing.sources.labelled import FirstFew, Labeller
from shards.packing.sources.record import Record
from shards.packing.sources.tables import CsvSource
from shards.words import counted, display

_NAMES = ("path", "file_name", "filename", "file", "name", "image")
_LABELS = ("label", "class", "category")


class FromFile(Labeller):
    """Labels by the images' names.

    A name is a path relative to the source, a member's in its archive, or what a table calls the image, whose row may
    be named as well (`row 7`); one without a folder fits the file of that name in whatever folder. The extension may be
    missing. All labels of the file are classes, also those without an
    image, so that sets packed with one file have the same classes.

    Args:
        place: The file, for messages.
        root: Root of the source: names may begin with its last folder, too.
        labels: The label, or None, of each name, by `plain` the name.
        remedy: What to do if the names are none of the images'; empty if there is nothing to say.
    """

    def __init__(self, place: str, root: str, labels: Mapping[bytes, bytes | None], remedy: str = "") -> None:
        self._file = display(place)
        self._folder = os.fsencode(root.rstrip("/").rpartition("/")[2])
        self._labels, self._remedy = labels, remedy
        self._used: dict[bytes, bytes] = {}  # the image that a name was found for
        self._without = FirstFew()

    def classes(self) -> Collection[bytes]:
        """All labels of the file."""
        return {label for label in self._labels.values() if label is not None}

    def label(self, record: Record) -> bytes | None:
        """The label of an image."""
        path = record.path + b"/" + record.member if record.member else record.path
        name = self._name(record, plain(path))
        if name is None:
            self._without.add(path)
            return None
        if self._used.setdefault(name, path) != path:
            raise PackError(
                f"{self._file} gives {display(name)} a label, but there are {display(self._used[name])} and"
                f" {display(path)}; name the images with their folders there"
            )
        label = self._labels[name]
        if label is None:
            self._without.add(path)
        return label

    def _name(self, record: Record, path: bytes) -> bytes | None:
        """The name in the file that means an image."""
        called, file = plain(record.name), plain(record.path)
        names = [path, called, plain(record.member), self._folder + b"/" + path]
        if called and record.member:  # `row 7 (cat.jpg)`
            row = record.member.partition(b" (")[0]
            names += [file + b"/" + called, file + b"/" + row, row]
        for name in (*names, called.rpartition(b"/")[2], path.rpartition(b"/")[2]):
            for form in (name, os.path.splitext(name)[0]):
                if form in self._labels:
                    return form
        return None

    def check(self, images: int, whole: bool) -> None:
        """See Labeller.check."""
        if images and not self._used:
            first = next((display(name) for name in self._labels), "none")
            raise PackError(
                f"{self._file} names none of the {counted(images, 'image')}; its names are like {first}, the images'"
                f" like {self._without.first[0]}{self._remedy}"
            )

    def notes(self) -> Iterator[str]:
        """See Labeller.notes."""
        if self._without.count:
            yield f"no label in {self._file} for {counted(self._without.count, 'image')}: {self._without}"
        unknown = FirstFew()
        for name in self._labels:
            if name not in self._used:
                unknown.add(name)
        if unknown.count:
            yield f"{counted(unknown.count, 'name')} in {self._file} without an image: {unknown}"


def plain(name: bytes) -> bytes:
    """A name as names are compared: in one Unicode form, without `./` in front."""
    return one_form(name.removeprefix(b"./"))


def read_table(place: str, path_column: str | None, label_column: str | None) -> dict[bytes, bytes | None]:
    """Labels by name from a table: CSV with or without a header, or JSON Lines.

    Args:
        place: The table; a local path or a URL.
        path_column: Name of the column with the names; None: `path`, `file_name`, ..., or the first of two columns
            without a header.
        label_column: Name of the column with the labels; None: `label`, `class` or `category`, or the second one.

    Raises:
        PackError: It cannot be read, has no such column, a row is malformed, or a name has two labels.
    """
    kind = _JsonLines if place.lower().endswith((".jsonl", ".ndjson")) else _Csv
    labels: dict[bytes, bytes | None] = {}
    for found in kind(place, path_column, label_column).records():
        if isinstance(found, Quarantined):
            raise PackError(f"--labels {found.source}: {found.reason}")
        name = plain(found.path)
        if labels.setdefault(name, found.label) != found.label:
            both = " and ".join(display(label or b"none") for label in (labels[name], found.label))
            raise PackError(f"--labels {display(place)} gives {display(name)} two labels, {both}; keep one of them")
    if not labels:
        raise PackError(f"--labels {display(place)} is empty")
    return labels


class _Csv(CsvSource):
    flag = "--labels"

    def __init__(self, place: str, path_column: str | None, label_column: str | None) -> None:
        super().__init__(place, None, None, Fields(path_column or "", label_column))
        self._given = path_column, label_column

    def _places(self, header: list[str]) -> tuple[int, int, int]:
        if self._given == (None, None) and len(header) == 2 and named_as_image(header[0]):
            self.has_header = False
            return 0, 1, -1
        path, label = _columns(self._given, header, self.place)
        return header.index(path), header.index(label), -1


class _JsonLines(JsonlSource):
    flag = "--labels"

    def __init__(self, place: str, path_column: str | None, label_column: str | None) -> None:
        super().__init__(place, None, None, Fields(path_column or "", label_column))
        self._given = path_column, label_column

    def _columns(self, first: dict[str, object]) -> Fields:
        # with a field in another one (`a.b`) the caller names it
        return Fields(
            *_columns(self._given, [*first, *(each for each in self._given if each and "." in each)], self.place)
        )


def _columns(given: tuple[str | None, str | None], names: list[str], place: str) -> tuple[str, str]:
    """The columns with names and with labels."""
    found = []
    for name, known in zip(given, (_NAMES, _LABELS), strict=True):
        column = name or next((column for column in known if column in names), None)
        if column not in names:
            missing = repr(column) if column else " or ".join(map(repr, known))
            raise no_column(missing, names, place, ("path", "label"))
        found.append(column)
    return found[0], found[1]
