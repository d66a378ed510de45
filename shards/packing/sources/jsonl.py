"""Tables of paths in JSON Lines."""

from __future__ import annotations

from collections.abc import Iterator

from shards.errors import PackError
from shards.format.labels import field_of
from shards.format.manifest import Quarantined, parse_json
from shards.packing.sources.fields import Fields, no_column
from shards.packing.sources.record import Record
from shards.packing.sources.tables import CsvSource
from shards.storage.store import open_place
from shards.words import display

_LONGEST = 1 << 24  # bytes of a line


class JsonlSource(CsvSource):
    """A file with a JSON object on each line; columns are its fields, `a.b` the field `b` of the object `a`."""

    kind = "jsonl"
    extensions = (b"jsonl", b"ndjson")

    def records(self) -> Iterator[Record | Quarantined]:
        """A record for each line; empty lines are skipped, and malformed ones reported."""
        number, columns, labelled, named = 0, None, False, False
        try:
            with open_place(self.place) as file:
                while line := file.readline(_LONGEST):
                    number += 1
                    line = self._first_line(line) if number == 1 else line
                    if not line.strip():
                        continue
                    try:
                        values = _object(line)
                        columns = columns or self._columns(values)
                        path, label, name = (column and field_of(values, column) for column in columns)
                        labelled, named = labelled or label is not None, named or name is not None
                        if not self.selection.excludes(text := _text(path, columns.path)):
                            found = self._label_of(number, label, columns.label)
                            yield self._record(number, text, found, self._name(_text(name, columns.name)))
                    except ValueError as error:
                        yield self._problem(number, f"bad row: {error}")
        except OSError as error:
            raise PackError(f"cannot read {self.flag} {display(self.place)}: {error.strerror}") from error
        if not number:
            raise PackError(f"{self.flag} {display(self.place)} is empty")
        for field, met, flag in ((columns.label, labelled, "label"), (columns.name, named, "name")) if columns else ():
            if field and not met:
                raise PackError(f"no line of {display(self.place)} has a field {field!r} (see --{flag}-column)")

    def _columns(self, first: dict[str, object]) -> Fields:
        """The fields that are read, of which the first line has to have that with a path."""
        if field_of(first, self._fields.path) is None:
            raise no_column(repr(self._fields.path), list(first), self.place)
        return self._fields

    def _label_of(self, number: int, value: object, field: str | None) -> bytes | None:
        if field is None:
            return None
        label = value if value is None or isinstance(value, float) else _text(value, field)
        try:
            return self._label(label)
        except ValueError as error:
            raise PackError(f"line {number} of {display(self.place)}, field {field!r}: {error}") from None


def _object(line: bytes) -> dict[str, object]:
    values = parse_json(line)
    if not isinstance(values, dict):
        raise ValueError("it is no object, as {...} is")
    return values


def _text(value: object, field: str | None) -> bytes:
    if value is None:
        return b""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"its field {field!r} is neither text nor a whole number")
    return str(value).encode("utf-8", "surrogatepass")
