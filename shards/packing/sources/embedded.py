"""Parquet and Arrow files that hold the images themselves, such as data sets of Hugging Face."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from shards.errors import PackError
from shards.format.labels import kept_url
from shards.format.manifest import Quarantined
from shards.packing.sources.columns import Columns, candidates, chosen
from shards.packing.sources.fields import label_of, no_label_text, text_of, unlabelled_text
from shards.packing.sources.folder import NamedFiles
from shards.packing.sources.record import Record, Source
from shards.packing.sources.rows import Table, cause, is_damage, leaf, opened
from shards.packing.sources.selection import Selection
from shards.storage.places import is_url, joined, parent
from shards.storage.store import open_place
from shards.words import counted, display

EXTENSIONS = {"parquet": (b"parquet", b"pq"), "arrow": (b"arrow", b"feather", b"ipc")}
SAVED = "state.json"  # what `datasets` writes beside the files of a data set
_SPLIT = re.compile(rb"(?:.*/)?([A-Za-z_]+)-\d{5}-of-\d{5}\.\w+")  # data/train-00000-of-00294.parquet
_PART = 32 << 20  # bytes of images that one task reads: enough tasks for all processes, also of a single file


class Part(NamedTuple):
    """Rows of a file that one task reads.

    Attributes:
        path: Path of the file, relative to the source's root.
        groups: The groups of rows; None: all, of a file without groups.
        first: Number of the first row in the file.
        rows: Number of rows.
        size: Bytes of the images, without compression; 0 if that is not known.
    """

    path: bytes
    groups: tuple[int, ...] | None
    first: int
    rows: int
    size: int


class EmbeddedSource(Source):
    """Images in the rows of Parquet or Arrow files, one or those of a folder.

    Reading the records reads no image, but the columns with names and labels. An image is named after its row, which
    counts from 0 in its file, and after the `path` that Hugging Face keeps beside the bytes: `row 17 (cat.jpg)`.

    Args:
        place: A file, a folder that is searched for files, or a data set saved by `datasets`; a path or a URL.
        kind: `parquet` or `arrow`.
        selection: Which files are packed, and, where rows have a `path`, which of these.
        image_column: See `columns.chosen`.
        label_column: See `columns.chosen`.
        name_column: See `columns.chosen`.
        all_splits: Pack all splits of a folder; by default, the files of `train` are packed.

    Attributes:
        parts: What tasks read, once the records are read.
        size: Bytes of the images without compression, as far as it is known.
        staged: Those of them that packing has to copy, as they are compressed in the files.
    """

    def __init__(
        self,
        place: str,
        kind: str,
        selection: Selection,
        image_column: str | None = None,
        label_column: str | None = None,
        name_column: str | None = None,
        all_splits: bool = False,
    ) -> None:
        self.kind, self.selection, self.all_splits = kind, selection, all_splits
        named = os.path.splitext(place)[1].lower().encode()[1:] in EXTENSIONS[kind]
        single = named if is_url(place) else os.path.isfile(place)
        self._place, self.root = place, parent(place) if single else place
        self._single = place.rpartition("/")[2] if single else None
        self._asked = image_column, label_column, name_column
        self._columns: Columns | None = None
        self._unlabelled: Counter[str] = Counter()
        self._left: Counter[str] = Counter()  # files of other splits
        self._damaged: list[str] = []
        self.parts: list[Part] = []
        self.size = self.staged = 0

    @property
    def columns(self) -> Columns:
        """The columns, once the records are read."""
        assert self._columns is not None
        return self._columns

    @property
    def class_names(self) -> tuple[str, ...]:
        """See Source.class_names."""
        return () if self._columns is None else self._columns.classes

    def records(self) -> Iterator[Record | Quarantined]:
        """The rows of all files; their offsets are the numbers of the rows."""
        self.parts, self.size, self.staged, self.fingerprint = [], 0, 0, b""
        try:
            for path, size in self._files():
                self.fingerprint += b"%s\0%d\0" % (path, size)
                yield from self._rows(path)
        except OSError as error:
            raise PackError(f"cannot read --src {display(error.filename or self.root)}: {error.strerror}") from error

    def _files(self) -> list[tuple[bytes, int]]:
        """Paths and sizes of the files, sorted."""
        if self._single is not None:
            with open_place(self._place) as file:
                return [(os.fsencode(self._single), file.seek(0, os.SEEK_END))]
        files = NamedFiles(self.root, *EXTENSIONS[self.kind], selection=self.selection)
        found = sorted((each.path, each.size) for each in files.records() if isinstance(each, Record))
        self.ignored += files.ignored
        if self.kind == "arrow":
            found = _without_caches(self.root, found)
        return found if self.all_splits else self._of_training(found)

    def _of_training(self, files: list[tuple[bytes, int]]) -> list[tuple[bytes, int]]:
        """The files of the training split, where their names say that there are several splits."""
        split_of = {path: match[1] for path, _ in files if (match := _SPLIT.fullmatch(path))}
        splits = sorted(set(split_of.values()))
        if len(splits) < 2:
            return files
        if b"train" not in splits:
            names = ", ".join(map(display, splits))
            raise PackError(
                f"--src {display(self.root)} holds files of the splits {names} and none of train; leave out others"
                f" by --exclude '{display(splits[0])}-*', or add --all-splits"
            )
        self._left.update(display(split) for split in split_of.values() if split != b"train")
        return [each for each in files if split_of.get(each[0]) in (b"train", None)]

    def _rows(self, path: bytes) -> Iterator[Record | Quarantined]:
        place = joined(self.root, os.fsdecode(path)) if self._single is None else self._place
        with opened(self.kind, place) as table:
            columns = chosen(table.schema, *self._asked, place)
            if self._columns is None:
                self._columns = columns
            elif columns != self._columns:
                raise PackError(
                    f"{display(place)} has other columns or classes than the files before it; pack them one by one"
                )
            structs, plain = candidates(table.schema)
            if (structs or plain) != [columns.image]:  # the records of another column may be the same
                self.fingerprint += b"column\0%s\0" % columns.image.encode()
            rows = 0
            try:
                for names, labels, urls in self._fields(table, columns):
                    for value, label, url in zip(names, labels, urls, strict=True):
                        name = text_of(value)
                        if not (name and self.selection.excludes(name)):
                            yield self._record(path, rows, name, label, url)
                        rows += 1
            except Exception as error:
                if self.kind == "parquet" or not (isinstance(error, OSError | ValueError) and is_damage(error)):
                    raise
                # An Arrow file is read from its start: what comes before the damage is there.
                self._damaged.append(f"{display(path)} after row {rows - 1:,}")
                yield Quarantined(display(path), f"truncated: {cause(error)}")
            self._add_parts(path, table, columns, rows)

    def _fields(self, table: Table, columns: Columns) -> Iterator[tuple[list[Any], list[Any], list[Any]]]:
        """Names, labels and URLs of the rows, batch by batch."""
        if not columns.cheap and table.groups is not None:
            for count in table.groups:
                nothing = [None] * count
                yield nothing, nothing, nothing
            return
        for batch in table.batches(columns.cheap):
            nothing = [None] * batch.num_rows
            read = (columns.called, columns.label, columns.url)
            names, labels, urls = (nothing if each is None else leaf(batch, each).to_pylist() for each in read)
            yield names, labels, urls

    def _record(self, path: bytes, row: int, name: bytes, value: Any, url: str | None) -> Record:
        columns = self.columns
        label = None
        if columns.label is not None:
            try:
                label = label_of(value)
                if label is not None and columns.classes and not int(label) < len(columns.classes):
                    raise ValueError(f"label {value} is not one of the {len(columns.classes):,} classes of the file")
            except ValueError as error:
                raise PackError(f"row {row} of {display(path)}, column {columns.label!r}: {error}") from None
            if label is None:
                self._unlabelled[no_label_text(value)] += 1
        member = f"row {row} ({display(name)})" if name else f"row {row}"
        return Record(path, -1, label, member.encode(), row, kept_url(url), name)

    def _add_parts(self, path: bytes, table: Table, columns: Columns, rows: int) -> None:
        size, in_place = table.bytes_of(columns.content)
        self.size += size
        self.staged += 0 if in_place else size
        if table.groups is None:
            self.parts.append(Part(path, None, 0, rows, size))
            return
        most = max(1, rows * _PART // size) if size else rows
        first = start = count = 0
        for end, more in enumerate(table.groups, 1):
            count += more
            if count >= most or end == len(table.groups):
                self.parts.append(Part(path, tuple(range(start, end)), first, count, size * count // max(rows, 1)))
                first, start, count = first + count, end, 0

    def notes(self) -> Iterator[str]:
        """See Source.notes."""
        yield from super().notes()
        if self._left:
            files = ", ".join(f"{counted(count, 'file')} of {name}" for name, count in sorted(self._left.items()))
            yield f"packed the split train alone, without {files}; --all-splits packs all of them"
        if self._columns is not None and self._columns.remark:
            yield self._columns.remark
        if self._damaged:
            yield f"{counted(len(self._damaged), 'file')} damaged; rows behind it are missing: {self._damaged[0]}"
        yield from unlabelled_text(self._unlabelled)


def holds_images(place: str, kind: str, selection: Selection, path_column: str) -> bool:
    """Whether a Parquet file, or the first one of a folder, holds images rather than their paths.

    Raises:
        PackError: It cannot be read.
    """
    source = EmbeddedSource(place, kind, selection, all_splits=True)
    try:
        first = next(iter(source._files()), None)
        if first is None:
            return False
        with opened(kind, place if source._single else joined(place, os.fsdecode(first[0]))) as table:
            structs, plain = candidates(table.schema)
            # A table of paths may hold bytes as well, such as hashes.
            return bool(structs or (plain and path_column not in table.schema.names))
    except OSError as error:
        raise PackError(f"cannot read --src {display(place)}: {error.strerror}") from error


def _without_caches(root: str, files: list[tuple[bytes, int]]) -> list[tuple[bytes, int]]:
    """The files that the data set in a folder consists of: `datasets` puts caches beside them, with the same rows."""
    try:
        with open_place(joined(root, SAVED)) as file:
            state = json.load(file)
            names = {os.fsencode(each["filename"]) for each in state["_data_files"]}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return files
    missing = sorted(names - {path for path, _ in files})
    if missing:
        raise PackError(f"--src {display(root)}: {SAVED} names {display(missing[0])}, which is missing or left out")
    return [each for each in files if each[0] in names]
