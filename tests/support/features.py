"""Features in files, without an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastmoco.features.parts import SCHEMA, write_about, write_part
from fastmoco.features.rows import Rows
from shards.storage.store import open_store


def write_features(
    folder: Path,
    place: str | Path,
    made: np.ndarray,
    digest: str = "",
    names: Sequence[str] | None = None,
    labels: np.ndarray | None = None,
    classes: Sequence[str] = (),
    part_size: int = 40,
) -> Path:
    """Features [n, D] as `fastmoco embed` writes them, with `part_size` images in a part; returns their folder."""
    count = len(made)
    names = [f"folder/{number}.jpg" for number in range(count)] if names is None else names
    labels = np.full(count, -1) if labels is None else labels
    store = open_store(folder)
    folder.mkdir()
    parts = range(-(-count // part_size))
    for part in parts:
        here = slice(part * part_size, min(count, (part + 1) * part_size))
        write_part(store, part, Rows(made[here], np.arange(count)[here], names[here], labels[here]), [], "npy", classes)
    about = {"schema": SCHEMA, "format": "npy", "dim": made.shape[1], "parts": len(parts), "rows": count, "set": digest}
    about |= {"classes": list(classes), "complete": True, "place": str(place), "checkpoint": None, "encoder": "ab"}
    write_about(store, about)
    return folder


def features(count: int, dim: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Features of different lengths, float32 [count, dim], and the same of length 1."""
    made = np.random.default_rng(5).normal(size=(count, dim)).astype(np.float32)
    return made, made / np.linalg.norm(made, axis=1, keepdims=True)
