"""Lists and tables of paths: text, CSV and TSV, Parquet."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from shards.errors import PackError
from shards.format.manifest import Quarantined
from shards.packing.sources.fields import (
    Fields,
    Value,
    label_of,
    no_label_text,
    place_of,
    text_of,
    unlabelled_text,
    unnamed_text,
)
from shards.packing.sources.record import Record, Source, path_fault
from shards.packing.sources.selection import Selection
from shards.storage.places import parent
from shards.storage.store import open_place
from shards.words import display

_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # its marks, in either order of bytes
_HEADER = 1 << 20  # characters of a table's first line
_TEXTS = ("string", "large_string", "binary", "large_binary")  # types of pyarrow
_NUMBERS = ("integer", "floating", "decimal", "boolean")
_BATCH = 8192  # rows of a Parquet file at a time; its row groups may hold millions


class ListSource(Source):
    """A text file with a path or URL on each line, in any encoding; empty lines are skipped.

    Args:
        place: The list; a local path or a URL.
        root: Base of relative paths; None: the folder that holds the list.
        selection: Which paths are packed. Those of a list are chosen by name, so hidden ones count as well.
    """

    kind = "list"
    flag = "--src"

    def __init__(self, place: str, root: str | None = None, selection: Selection | None = None) -> None:
        self.place = place
        self.selection = selection or Selection()
        self.root = parent(place) if root is None else root

    def records(self) -> Iterator[Record | Quarantined]:
        """A record for each line."""
        try:
            with open_place(self.place) as file:
                for number, line in enumerate(file, 1):
                    if number == 1:
                        line = self._first_line(line)
                    path = line.rstrip(b"\r\n")
                    if path and not self.selection.excludes(path):
                        yield self._record(number, path, None)
        except OSError as error:
            raise PackError(f"cannot read {self.flag} {display(self.place)}: {error.strerror}") from error

    def _first_line(self, line: bytes) -> bytes:
        """The first line without the mark of UTF-8; PackError if it is of another encoding."""
        if line.startswith(_UTF_16):
            place = display(self.place)
            raise PackError(f"cannot read {self.flag} {place}: its text is encoded in UTF-16; save it in UTF-8")
        return line.removeprefix(_BOM)

    def _record(self, number: int, path: bytes, label: bytes | None, name: bytes = b"") -> Record | Quarantined:
        fault = path_fault(path, name)
        return self._problem(number, fault) if fault else Record(path, -1, label, name=name)

    def _problem(self, number: int, reason: str) -> Quarantined:
        return Quarantined(f"{display(self.place.rpartition('/')[2])}:{number}", reason)


class CsvSource(ListSource):
    """A table with a header.

    Fields are separated by tabs in .tsv and .tab files, else by commas, or, where the first line has none, by
    semicolons or tabs: spreadsheets in countries with a decimal comma write semicolons.

    Args:
        place: The table; a local path or a URL.
        root: See ListSource.
        selection: See ListSource.
        fields: Names of its columns.
    """

    kind = "csv"
    has_header = True
    extensions = (b"csv", b"tsv", b"tab")

    def __init__(self, place: str, root: str | None, selection: Selection | None, fields: Fields) -> None:
        super().__init__(place, root, selection)
        self._fields = fields
        self.unlabelled: Counter[str] = Counter()  # rows without a label, by what their field holds
        self.unnamed = 0  # rows without a name

    def notes(self) -> Iterator[str]:
        """See Source.notes."""
        yield from super().notes()
        yield from unlabelled_text(self.unlabelled)
        yield from unnamed_text(self.unnamed)

    def records(self) -> Iterator[Record | Quarantined]:
        """A record for each row; malformed rows are reported with their line."""
        try:
            with open_place(self.place) as file:
                # newline="" leaves line ends to csv: they may be part of a quoted field. Paths need not be UTF-8.
                text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
                first = text.readline(_HEADER).encode("utf-8", "surrogateescape")
                line = self._first_line(first).decode("utf-8", "surrogateescape")
                delimiter = next((each for each in self.delimiters if each in line), ",")
                yield from self._rows(csv.reader(chain((line,), text), delimiter=delimiter))
        except OSError as error:
            raise PackError(f"cannot read {self.flag} {display(self.place)}: {error.strerror}") from error

    @property
    def delimiters(self) -> str:
        """What may separate the fields; the first one in the first line does."""
        return "\t" if self.place.lower().endswith((".tsv", ".tab")) else ",;\t"

    def _rows(self, reader: Any) -> Iterator[Record | Quarantined]:
        try:
            header = next(filter(None, reader), None)
        except csv.Error as error:
            raise PackError(f"cannot read the header of {self.flag} {display(self.place)}: {error}") from None
        if header is None:
            raise PackError(f"{self.flag} {display(self.place)} is empty")
        path_at, label_at, name_at = self._places(header)
        rows = reader if self.has_header else chain((header,), reader)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield self._problem(reader.line_num, f"bad row: {error}")
                continue
            if len(row) == len(header):
                if self.selection.excludes(path := text_of(row[path_at])):
                    continue
                label = None if label_at < 0 else self._label(row[label_at])
                yield self._record(reader.line_num, path, label, self._name(None if name_at < 0 else row[name_at]))
            elif row:
                yield self._problem(reader.line_num, f"bad row: {len(row)} fields, the header has {len(header)}")

    def _places(self, header: list[str]) -> tuple[int, int, int]:
        """Indexes of the columns with paths, labels and names; -1 if there is none."""
        path, label, name = (place_of(column, header, self.place) for column in self._fields)
        return path, label, name

    def _label(self, value: Value) -> bytes | None:
        """The label in a field; counts fields without one.

        Raises:
            ValueError: It is a number, but not a whole one.
        """
        text = label_of(value)
        if text is None:
            self.unlabelled[no_label_text(value)] += 1
        return text

    def _name(self, value: Value) -> bytes:
        """The name in a field; counts rows without one."""
        name = text_of(value)
        if self._fields.name is not None and not name:
            self.unnamed += 1
        return name


class ParquetSource(CsvSource):
    """A Parquet file; needs pyarrow (the extra `parquet`)."""

    kind = "parquet"
    extensions = (b"parquet", b"pq")

    def records(self) -> Iterator[Record | Quarantined]:
        """A record for each row."""
        try:
            from pyarrow import ArrowException, parquet
        except ImportError:
            raise PackError(
                f"reading {self.flag} {display(self.place)} needs pyarrow: pip install 'fastmoco[parquet]'"
            ) from None
        try:
            with open_place(self.place) as file, parquet.ParquetFile(file) as table:
                yield from self._batches(table)
        except (OSError, ArrowException, UnicodeDecodeError) as error:
            damage = f"the file is damaged ({display(' '.join(str(error).split()))})"
            cause = getattr(error, "strerror", None) or damage
            raise PackError(f"cannot read {self.flag} {display(self.place)}: {cause}") from error

    def _batches(self, table: Any) -> Iterator[Record | Quarantined]:
        schema = table.schema_arrow
        path_column, label_column, name_column = self._fields
        for column, more in ((path_column, ()), (label_column, _NUMBERS), (name_column, _NUMBERS[:1])):
            if column is not None:
                place_of(column, schema.names, self.place)
                self._check_type(column, schema.field(column).type, more)
        number = 0
        for batch in table.iter_batches(batch_size=_BATCH, columns=self._fields.read):
            values, nothing = batch.to_pydict(), [None] * batch.num_rows
            columns = (nothing if column is None else values[column] for column in self._fields)
            for path, label, name in zip(*columns, strict=True):
                number += 1
                if self.selection.excludes(text_of(path)):
                    continue
                try:
                    found = None if label_column is None else self._label(label)
                except ValueError as error:
                    raise PackError(
                        f"row {number} of {display(self.place)}, column {label_column!r}: {error}"
                    ) from None
                yield self._record(number, text_of(path), found, self._name(name))

    def _check_type(self, name: str, kind: Any, more: Sequence[str]) -> None:
        # `text_of` turns any value into text: a column of lists would yield paths such as "[1, 2]".
        from pyarrow import types

        kind = kind.value_type if types.is_dictionary(kind) else kind
        if not any(getattr(types, f"is_{each}")(kind) for each in (*_TEXTS, *more)):
            wanted = "strings or numbers" if more == _NUMBERS else "strings or whole numbers" if more else "strings"
            raise PackError(f"column {name!r} of {display(self.place)} holds {kind}, not {wanted}")
