"""Rows of features, and the content of the files that hold them: .npy with .jsonl, or Parquet."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmoco.flags import ConfigError


@dataclass(frozen=True)
class Rows:
    """Features of n images.

    Attributes:
        features: float32 or float16 [n, D].
        ids: int64 [n], sample ids, ascending.
        names: of the images, as of `ShardSet.names`.
        labels: int64 [n], -1 for none.
        urls: as of `ShardSet.urls`; empty if no image has one.
    """

    features: np.ndarray
    ids: np.ndarray
    names: Sequence[str]
    labels: np.ndarray
    urls: Sequence[str] = ()


def npy(rows: Rows, classes: Sequence[str]) -> dict[str, bytes]:
    """Contents of the .npy and the .jsonl file, by suffix."""
    buffer = io.BytesIO()
    np.save(buffer, rows.features, allow_pickle=False)
    lines = [
        json.dumps(
            {
                "id": number,
                "name": name,
                "label": label,
                "class": _class(classes, label),
                **({"url": url} if url else {}),
            },
            ensure_ascii=False,
        )
        for number, name, label, url in zip(
            rows.ids.tolist(), rows.names, rows.labels.tolist(), rows.urls or [""] * len(rows.ids), strict=True
        )
    ]
    return {".npy": buffer.getvalue(), ".jsonl": "".join(f"{line}\n" for line in lines).encode()}


def parquet(rows: Rows, classes: Sequence[str]) -> dict[str, bytes]:
    """Content of the .parquet file, by suffix; raises ConfigError without pyarrow."""
    pa, pq = arrow()
    dim = rows.features.shape[1]
    urls = {"url": pa.array([url or None for url in rows.urls], pa.string())} if rows.urls else {}
    table = pa.table(
        {
            "id": pa.array(rows.ids, pa.int64()),
            "name": pa.array(list(rows.names), pa.string()),
            **urls,
            "label": pa.array(rows.labels, pa.int64()),
            "class": pa.array([_class(classes, label) for label in rows.labels.tolist()], pa.string()),
            "feature": pa.FixedSizeListArray.from_arrays(pa.array(rows.features.reshape(-1)), dim),
        }
    )
    buffer = io.BytesIO()
    # features are noise to a compressor
    pq.write_table(table, buffer, compression="zstd", use_dictionary=["class"], column_encoding=None)
    return {".parquet": buffer.getvalue()}


def arrow() -> tuple[Any, Any]:
    """Pyarrow and pyarrow.parquet; raises ConfigError where they are not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("Parquet needs pyarrow: pip install 'fastmoco[parquet]', or --format npy") from None
    return pyarrow, pyarrow.parquet


def _class(classes: Sequence[str], label: int) -> str | None:
    return classes[label] if 0 <= label < len(classes) else None


def rows_of_parquet(data: bytes, features: bool) -> Rows:
    """Rows from a .parquet file; without `features` these have the dimension 0. pyarrow raises any type of error."""
    _, pq = arrow()
    table = pq.read_table(io.BytesIO(data), columns=["id", "name", "label", *(["feature"] if features else [])])
    found = np.zeros((len(table), 0), np.float32)
    if features:
        column = table.column("feature").combine_chunks()
        found = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
    ids, labels = (table.column(name).to_numpy() for name in ("id", "label"))
    return Rows(found, ids, table.column("name").to_pylist(), labels)
