"""Lists and tables of paths: text, CSV and TSV, Parquet."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from itertools import chain
from typing import Any

from shards.errors import PackError
from shards.format.labels import is_no_label, number_text
from shards.format.manifest import Quarantined
from shards.packing.sources.record import Record, Source, path_fault
from shards.packing.sources.selection import Selection
from shards.storage.places import parent
from shards.storage.store import open_place
from shards.words import counted, display

_BOM = b"\xef\xbb\xbf"
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
                        line = line.removeprefix(_BOM)
                    path = line.rstrip(b"\r\n")
                    if path and not self.selection.excludes(path):
                        yield self._record(number, path, None)
        except OSError as error:
            raise PackError(f"cannot read {self.flag} {display(self.place)}: {error.strerror}") from error

    def _record(self, number: int, path: bytes, label: bytes | None) -> Record | Quarantined:
        fault = path_fault(path)
        return self._problem(number, fault) if fault else Record(path, -1, label)

    def _problem(self, number: int, reason: str) -> Quarantined:
        return Quarantined(f"{display(self.place.rpartition('/')[2])}:{number}", reason)


class CsvSource(ListSource):
    """A table with a header; fields are separated by tabs in .tsv and .tab files, else by commas.

    Args:
        place: The table; a local path or a URL.
        root: See ListSource.
        selection: See ListSource.
        path_column: Name of the column with paths or URLs.
        label_column: Name of the column with labels; None: no labels.
    """

    kind = "csv"
    has_header = True
    extensions = (b"csv", b"tsv", b"tab")

    def __init__(
        self, place: str, root: str | None, selection: Selection | None, path_column: str, label_column: str | None
    ) -> None:
        super().__init__(place, root, selection)
        self._columns = path_column, label_column
        self.unlabelled: Counter[str] = Counter()  # rows without a label, by what their field holds

    def notes(self) -> Iterator[str]:
        """See Source.notes."""
        yield from super().notes()
        yield from unlabelled_text(self.unlabelled)

    def records(self) -> Iterator[Record | Quarantined]:
        """A record for each row; malformed rows are reported with their line."""
        try:
            with open_place(self.place) as file:
                # newline="" leaves line ends to csv: they may be part of a quoted field. Paths need not be UTF-8.
                text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
                delimiter = "\t" if self.place.lower().endswith((".tsv", ".tab")) else ","
                yield from self._rows(csv.reader(text, delimiter=delimiter))
        except OSError as error:
            raise PackError(f"cannot read {self.flag} {display(self.place)}: {error.strerror}") from error

    def _rows(self, reader: Any) -> Iterator[Record | Quarantined]:
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise PackError(f"cannot read the header of {self.flag} {display(self.place)}: {error}") from None
        header[:1] = [name.removeprefix("\ufeff") for name in header[:1]]
        path_at, label_at = self._places(header)
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
                if self.selection.excludes(_bytes(row[path_at])):
                    continue
                label = None if label_at < 0 else self._label(row[label_at])
                yield self._record(reader.line_num, _bytes(row[path_at]), label)
            elif row:
                yield self._problem(reader.line_num, f"bad row: {len(row)} fields, the header has {len(header)}")

    def _places(self, header: list[str]) -> tuple[int, int]:
        """Indexes of the columns with paths and labels, of labels -1 if there is none."""
        path_column, label_column = self._columns
        return _column(path_column, header, self.place), _column(label_column, header, self.place)

    def _label(self, value: str | bytes | float | Decimal | None) -> bytes | None:
        """The label in a field; counts fields without one.

        Raises:
            ValueError: It is a number, but not a whole one.
        """
        text = label_of(value)
        if text is None:
            self.unlabelled[no_label_text(value)] += 1
        return text


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
        path_column, label_column = self._columns
        wanted = [name for name in (path_column, label_column) if name is not None]
        for name in wanted:
            _column(name, schema.names, self.place)
            self._check_type(name, schema.field(name).type, numbers=name == label_column)
        number = 0
        for batch in table.iter_batches(batch_size=_BATCH, columns=wanted):
            values = batch.to_pydict()
            paths = values[path_column]
            labels = values[label_column] if label_column is not None else [None] * len(paths)
            for path, label in zip(paths, labels, strict=True):
                number += 1
                if self.selection.excludes(_bytes(path)):
                    continue
                try:
                    found = None if label_column is None else self._label(label)
                except ValueError as error:
                    raise PackError(
                        f"row {number} of {display(self.place)}, column {label_column!r}: {error}"
                    ) from None
                yield self._record(number, _bytes(path), found)

    def _check_type(self, name: str, kind: Any, numbers: bool) -> None:
        # `_bytes` turns any value into text: a column of lists would yield paths such as "[1, 2]".
        from pyarrow import types

        kind = kind.value_type if types.is_dictionary(kind) else kind
        text = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
        number = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean)
        if not any(test(kind) for test in (*text, *(number if numbers else ()))):
            wanted = "strings or numbers" if numbers else "strings"
            raise PackError(f"column {name!r} of {display(self.place)} holds {kind}, not {wanted}")


def label_of(value: str | bytes | float | Decimal | None) -> bytes | None:
    """The label in a field of a table; None if it means that there is none.

    Raises:
        ValueError: It is a number, but not a whole one.
    """
    text = number_text(float(value)) if isinstance(value, float | Decimal) else _bytes(value)
    return None if text is None or is_no_label(text) else text


def no_label_text(value: str | bytes | float | Decimal | None) -> str:
    """What a field without a label holds."""
    return "null" if value is None else display(_bytes(value)) or "empty"


def unlabelled_text(fields: Counter[str]) -> Iterator[str]:
    """How many rows have no label, by what their fields hold; nothing if all have one."""
    if fields:
        held = ", ".join(f"{count:,} {field}" for field, count in sorted(fields.items()))
        yield f"no label in {counted(fields.total(), 'row')} ({held})"


def _bytes(value: str | bytes | float | Decimal | None) -> bytes:
    """The bytes of a field; empty for None."""
    if isinstance(value, bytes):
        return value
    return b"" if value is None else str(value).encode("utf-8", "surrogateescape")


def _column(name: str | None, names: list[str], place: str) -> int:
    """Index of a column in the header; -1 for None."""
    if name is None:
        return -1
    if name not in names:
        raise no_column(repr(name), names, place)
    return names.index(name)


def no_column(name: str, names: list[str], place: str) -> PackError:
    """The error of a table without a column, whose name is given as it is quoted."""
    known = ", ".join(display(column.encode("utf-8", "surrogateescape")) for column in names[:20]) or "none"
    return PackError(
        f"{display(place)} has no column {name}; its columns are: {known} (see --path-column, --label-column)"
    )
