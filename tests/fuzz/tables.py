"""Damaged Parquet files of paths and labels, given as a source."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from shards.errors import PackError
from shards.packing.options import PackOptions
from shards.packing.sources import open_source
from tests.fuzz.faults import ACCEPTED, Field, Kind


def _table(labels: list[Any], **options: Any) -> bytes:
    paths = [f"images/{number:03}.jpg" for number in range(len(labels))]
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"path": paths, "label": labels, "note": ["x"] * len(labels)}), buffer, **options)
    return buffer.getvalue()


@functools.cache
def _tables() -> list[bytes]:
    numbers, names = [number % 3 for number in range(40)], ["cat", None] * 20
    return [
        _table(numbers), _table(names, compression="gzip"), _table(names, use_dictionary=False, compression="none"),
        _table([1.0, 2.0] * 20, compression="zstd", row_group_size=10), _table(numbers, data_page_version="2.0"),
    ]  # fmt: skip


def _footer(data: bytes) -> int:
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def _of_parquet(data: bytes) -> list[Field]:
    """The footer's length, and any byte of the footer or of a page's header: their numbers are of varying length."""
    begin = max(0, _footer(data))
    return [
        Field(len(data) - 8, "<I"),
        *(Field(place, "<B") for place in (*range(4, 40), *range(begin, len(data) - 8))),
    ]


def _with_footer(data: bytes, rng: np.random.Generator) -> bytes:
    """The file with its end mark; half of the time with as long a footer as there is."""
    data = data[:-4] + b"PAR1" if len(data) > 12 else data
    place = data.rfind(b"\x19")
    if rng.random() < 0.1 and 0 < place < len(data) - 8:
        return data[:-8] + (len(data) - 8 - place).to_bytes(4, "little") + b"PAR1"
    return data


def _outcome(data: bytes, number: int, folder: Path) -> str:
    """What packing's plan makes of a table."""
    path = folder / "x.parquet"
    path.write_bytes(data)
    label = (None, "label")[number % 2]
    try:
        source = open_source(PackOptions(src=path, out=folder / "out", label_column=label))
        for _ in source.records():
            pass
        list(source.notes())
    except PackError as error:
        return "rejected: " + str(error).replace(str(folder), "")
    return ACCEPTED


PARQUET = Kind(_tables, _of_parquet, _with_footer, _outcome)
