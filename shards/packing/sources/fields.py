"""Fields of a table: the columns that are read, and what a value means as a path, a name or a label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import NamedTuple

from shards.errors import PackError
from shards.format.labels import is_no_label, number_text
from shards.images.formats import EXTENSIONS
from shards.words import counted, display

Value = str | bytes | float | Decimal | None
"""What a field of a row holds."""


class Fields(NamedTuple):
    """Names of the columns of a table of paths.

    Attributes:
        path: The column with paths or URLs.
        label: The column with labels; None: no labels.
        name: The column with the images' names; None: their paths are their names.
    """

    path: str
    label: str | None = None
    name: str | None = None

    @property
    def read(self) -> list[str]:
        """The columns to read, each once."""
        return list(dict.fromkeys(column for column in self if column is not None))


def label_of(value: Value) -> bytes | None:
    """The label in a field of a table; None if it means that there is none.

    Raises:
        ValueError: It is a number, but not a whole one.
    """
    text = number_text(float(value)) if isinstance(value, float | Decimal) else text_of(value)
    return None if text is None or is_no_label(text) else text


def no_label_text(value: Value) -> str:
    """What a field without a label holds."""
    return "null" if value is None else display(text_of(value)) or "empty"


def unlabelled_text(fields: Counter[str]) -> Iterator[str]:
    """How many rows have no label, by what their fields hold; nothing if all have one."""
    if fields:
        held = ", ".join(f"{count:,} {field}" for field, count in sorted(fields.items()))
        yield f"no label in {counted(fields.total(), 'row')} ({held})"


def unnamed_text(rows: int) -> Iterator[str]:
    """How many rows have no name; nothing if all have one."""
    if rows:
        yield f"no name in {counted(rows, 'row')}; the path or URL is kept as the name"


def text_of(value: Value) -> bytes:
    """The bytes of a field; empty for None."""
    if isinstance(value, bytes):
        return value
    return b"" if value is None else str(value).encode("utf-8", "surrogateescape")


def place_of(name: str | None, names: Sequence[str], place: str) -> int:
    """Index of a column in the header of the table at `place`; -1 for None."""
    if name is None:
        return -1
    if name not in names:
        raise no_column(repr(name), names, place)
    return names.index(name)


def no_column(name: str, names: Sequence[str], place: str, flags: Sequence[str] = Fields._fields) -> PackError:
    """The error of a table without a column, whose name is given as it is quoted; `flags` choose other columns."""
    known = ", ".join(display(column.encode("utf-8", "surrogateescape")) for column in names[:20]) or "none"
    see = ", ".join(f"--{flag}-column" for flag in flags)
    more = "; is the first line an image? it has to name the columns" if any(map(named_as_image, names)) else ""
    return PackError(f"{display(place)} has no column {name}; its columns are: {known} (see {see}){more}")


def named_as_image(name: str) -> bool:
    """Whether a name has an extension of images."""
    return "." in name and name.rpartition(".")[2].lower().encode(errors="replace") in EXTENSIONS
