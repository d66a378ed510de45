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
        mapped: The bytes of a local file as a pyarrow.Buffer, which maps them; None at a URL.
    """

    schema: Any
    groups: Sequence[int] | None
    mapped: Any

    @abstractmethod
    def batches(self, columns: Sequence[str], groups: Sequence[int] | None = None) -> Iterator[Any]:
        """Record batches with some leaf columns (`image.bytes`), of all groups or some, in order.

        Raises:
            OSError, pyarrow.ArrowException: The file cannot be read, or is damaged.
        """

    @abstractmethod
    def start_of(self, column: str, group: int | None) -> int:
        """Offset in the file behind which the values of a leaf column begin, of all groups or one."""

    @abstractmethod
    def bytes_of(self, column: str) -> tuple[int, bool]:
        """Bytes of a leaf column without compression, and whether they are in the file as they are."""


class ParquetTable(Table):
    """A Parquet file."""

    def __init__(self, place: str, file: BinaryIO) -> None:
        from pyarrow import parquet

        source, self.mapped = _mapped(place)
        # A buffer would only copy what is mapped.
        self._file = parquet.ParquetFile(source or file, buffer_size=0 if source else _BUFFER)
        self.schema = self._file.schema_arrow
        footer = self._file.metadata
        self.groups = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]

    def batches(self, columns: Sequence[str], groups: Sequence[int] | None = None) -> Iterator[Any]:
        """See Table.batches."""
        heavy = any(self._is_bytes(name) for name in columns)
        chosen = range(len(self.groups or ())) if groups is None else groups
        # One thread: there are as many processes as cores.
        yield from self._file.iter_batches(_BATCH if heavy else _NAMES, list(chosen), list(columns), use_threads=False)

    def start_of(self, column: str, group: int | None) -> int:
        """See Table.start_of."""
        chunk = self._chunk(column, group or 0)
        return chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset

    def bytes_of(self, column: str) -> tuple[int, bool]:
        """See Table.bytes_of."""
        chunks = [self._chunk(column, number) for number in range(self._file.metadata.num_row_groups)]
        size = sum(chunk.total_uncompressed_size for chunk in chunks)
        return size, all(chunk.compression == "UNCOMPRESSED" for chunk in chunks)

    def _chunk(self, column: str, group: int) -> Any:
        """The footer's entry for a leaf column in a group."""
        entries = self._file.metadata.row_group(group)
        chunks = (entries.column(place) for place in range(entries.num_columns))
        return next(chunk for chunk in chunks if chunk.path_in_schema == column)

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
        source, self.mapped = _mapped(place)
        source = source or pyarrow.PythonFile(file, "r")
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

    def start_of(self, column: str, group: int | None) -> int:
        """See Table.start_of."""
        return 0

    def bytes_of(self, column: str) -> tuple[int, bool]:
        """Size of the file, and that images are in it as they are, which is only known once they are read."""
        return self._size, True


def _mapped(place: str) -> tuple[Any, Any]:
    """A local file as pyarrow maps it, and the buffer with all of its bytes; (None, None) for one at a URL."""
    if is_url(place):
        return None, None
    from pyarrow import memory_map

    source = memory_map(place)
    whole = source.read_buffer()
    source.seek(0)
    return source, whole


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
