"""Parquet and Arrow files as batches of rows, read forwards; needs pyarrow (the extra `parquet`)."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from shards.errors import PackError
from shards.storage.places import is_url
from shards.storage.store import open_place
from shards.words import display

_BATCH = 32  # rows of images in memory; large ones have megabytes each
_NAMES = 8192  # rows of names and labels
_BUFFER = 1 << 20  # bytes of a column that are read at a time, so that a row group of gigabytes is not read whole
_MAGIC = b"ARROW1"  # of the file format; the stream format has none


class Table(ABC):
    """A file with columns, in groups of rows that can be read alone.

    Attributes:
        schema: Its pyarrow.Schema.
        groups: Numbers of rows of the groups; None if they are only known after reading.
    """

    schema: Any
    groups: Sequence[int] | None

    @abstractmethod
    def batches(self, columns: Sequence[str], groups: Sequence[int] | None = None) -> Iterator[Any]:
        """Record batches with some leaf columns (`image.bytes`), of all groups or some, in order.

        Raises:
            OSError, pyarrow.ArrowException: The file cannot be read, or is damaged.
        """

    @abstractmethod
    def bytes_of(self, column: str) -> tuple[int, bool]:
        """Bytes of a leaf column without compression, and whether they are in the file as they are."""


class ParquetTable(Table):
    """A Parquet file."""

    def __init__(self, place: str, file: BinaryIO) -> None:
        from pyarrow import memory_map, parquet

        self._file = parquet.ParquetFile(file if is_url(place) else memory_map(place), buffer_size=_BUFFER)
        self.schema = self._file.schema_arrow
        footer = self._file.metadata
        self.groups = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]

    def batches(self, columns: Sequence[str], groups: Sequence[int] | None = None) -> Iterator[Any]:
        """See Table.batches."""
        heavy = any(self._is_bytes(name) for name in columns)
        chosen = range(len(self.groups or ())) if groups is None else groups
        # One thread: there are as many processes as cores.
        yield from self._file.iter_batches(_BATCH if heavy else _NAMES, list(chosen), list(columns), use_threads=False)

    def bytes_of(self, column: str) -> tuple[int, bool]:
        """See Table.bytes_of."""
        size, plain = 0, True
        footer = self._file.metadata
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            for place in range(group.num_columns):
                chunk = group.column(place)
                if chunk.path_in_schema == column:
                    size += chunk.total_uncompressed_size
                    plain = plain and chunk.compression == "UNCOMPRESSED"
        return size, plain

    def _is_bytes(self, name: str) -> bool:
        from pyarrow import types

        top, _, inner = name.partition(".")
        return inner == "bytes" or (name in self.schema.names and types.is_binary(self.schema.field(top).type))


class ArrowTable(Table):
    """A file in Arrow's stream format, as `datasets` saves, or in its file format (Feather)."""

    groups = None

    def __init__(self, place: str, file: BinaryIO) -> None:
        import pyarrow

        self._size = file.seek(0, os.SEEK_END)
        file.seek(0)
        source = pyarrow.PythonFile(file, "r") if is_url(place) else pyarrow.memory_map(place)
        self._reader: Any
        if file.read(len(_MAGIC)) == _MAGIC:
            file.seek(0)
            self._reader = pyarrow.ipc.open_file(source)
            self._count: int | None = self._reader.num_record_batches
        else:
            file.seek(0)
            self._reader = pyarrow.ipc.open_stream(source)
            self._count = None
        self.schema = self._reader.schema

    def batches(self, columns: Sequence[str], groups: Sequence[int] | None = None) -> Iterator[Any]:
        """See Table.batches; there are no groups. Columns that are not asked for are mapped, not read."""
        if self._count is None:
            yield from self._reader
        else:
            yield from map(self._reader.get_batch, range(self._count))

    def bytes_of(self, column: str) -> tuple[int, bool]:
        """Size of the file, and that images are in it as they are, which is only known once they are read."""
        return self._size, True


@contextlib.contextmanager
def opened(kind: str, place: str) -> Iterator[Table]:
    """Open a Parquet or an Arrow file.

    Raises:
        PackError: pyarrow is not installed, or the file is damaged, also from reading in the block.
        OSError: The file cannot be read.
    """
    try:
        from pyarrow import ArrowException
    except ImportError:
        raise PackError(f"reading --src {display(place)} needs pyarrow: pip install 'fastmoco[parquet]'") from None
    with open_place(place) as file:
        try:
            yield ParquetTable(place, file) if kind == "parquet" else ArrowTable(place, file)
        except (OSError, ArrowException) as error:
            if not is_damage(error):
                raise
            raise PackError(f"cannot read --src {display(place)}: the file is damaged ({cause(error)})") from error


def is_damage(error: Exception) -> bool:
    """Whether an error means that a file is damaged: those of pyarrow have no number, those of the disk have."""
    return not isinstance(error, OSError) or error.errno is None


def cause(error: Exception) -> str:
    """The text of pyarrow's error, in one line."""
    return display(" ".join(str(error).split()))[:300]


def leaf(batch: Any, column: str) -> Any:
    """The array of a leaf column; null where the struct around it is."""
    if column in batch.schema.names:
        return batch.column(column)
    top, _, inner = column.rpartition(".")
    structs = batch.column(top)
    return structs.flatten()[structs.type.get_field_index(inner)]
