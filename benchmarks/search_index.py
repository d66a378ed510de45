"""Recall and speed of searching features by an index, beside comparing all of them.

    python benchmarks/search_index.py [--images 50000 200000] [--json OUT]

The features are made: groups of directions with a spread of fewer dimensions, as an encoder's are. The queries
are others of the same groups. Each search opens features and index again, as `fastmoco similar` does. On two cores the
defaults take a minute. Beside the rows in --json is their table (.md).
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from _command import script
from _environment import environment
from _features_tables import search_index as markdown
from _results import show, write_beside, write_json
from fastmoco.features.index import build, open_index
from fastmoco.features.parts import SCHEMA, about_of, write_about, write_part
from fastmoco.features.rows import Rows
from fastmoco.features.search import Match, most_similar
from fastmoco.flags import at_least
from shards.storage.store import open_store

NEAREST = 10


@dataclass(frozen=True)
class Args:
    """Time searches of made features."""

    images: tuple[int, ...] = (50_000, 200_000)
    """Numbers of images; an index of lists is written above 100,000."""
    dim: int = 512
    """Numbers in a feature."""
    queries: int = 100
    """Images that are searched for."""
    repeats: int = 3
    """Searches of each kind."""
    seed: int = 0
    """Seed of the features."""
    flat: int = 100_000
    """Images up to which all are compared by the index, too."""
    json: Path | None = None
    """File for the rows and the environment."""


def run(args: Args) -> None:
    """Measure, print the rows, and write them."""
    at_least(1, args, "images", "dim", "queries", "repeats", "flat")
    with tempfile.TemporaryDirectory(prefix="search-index-") as folder:
        rows = [show(measured(args, images, Path(folder) / str(images))) for images in args.images]
    if args.json:
        result = {"environment": environment(), "rows": rows}
        write_json(args.json, result)
        write_beside(args.json, markdown(result))


def measured(args: Args, images: int, place: Path) -> dict[str, Any]:
    """The row of a number of images."""
    queries = made(args, images, place)
    began = time.perf_counter()
    record = build(place, about_of(place), args.flat)
    built = time.perf_counter() - began

    def by_index() -> list[list[Match]]:
        index, _ = open_index(place, about_of(place))
        assert index is not None
        return index.most_similar(place, queries, NEAREST)

    exact, all_seconds = timed(lambda: most_similar(place, queries, NEAREST), args.repeats)
    found, index_seconds = timed(by_index, args.repeats)
    hits = [len({one.id for one in near} & {one.id for one in all_}) for near, all_ in zip(found, exact, strict=True)]
    return {
        "images": images, "dim": args.dim, "lists": record["lists"], "probed": record["probed"],
        "recall_at_10": round(sum(hits) / (NEAREST * args.queries), 4), "recall_of_the_set": record["recall"],
        "queries": args.queries, "index_seconds": round(index_seconds, 3), "all_seconds": round(all_seconds, 3),
        "build_seconds": round(built, 1), "index_bytes": record["bytes"],
    }  # fmt: skip


def timed(search: Callable[[], list[list[Match]]], repeats: int) -> tuple[list[list[Match]], float]:
    """What a search finds, and the median of its seconds."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        found = search()
        seconds.append(time.perf_counter() - began)
    return found, statistics.median(seconds)


def made(args: Args, images: int, place: Path) -> np.ndarray:
    """Write features to a folder; returns queries, float32 [Q, D], of the same groups."""
    generator = np.random.default_rng(args.seed)
    # a few directions of variation in each group, of decreasing strength, and a little in all
    centres = generator.normal(size=(1000, args.dim)).astype(np.float32)
    mixing = (
        generator.normal(size=(32, args.dim)).astype(np.float32) / np.sqrt(np.arange(1, 33, dtype=np.float32))[:, None]
    )

    def some(count: int) -> np.ndarray:
        spread = generator.normal(size=(count, 32)).astype(np.float32) @ mixing
        noise = 0.2 * generator.normal(size=(count, args.dim)).astype(np.float32)
        return centres[generator.integers(0, len(centres), count)] + spread + noise

    place.mkdir()
    store, size = open_store(place), 8192
    parts = range(-(-images // size))
    for part in parts:
        ids = np.arange(part * size, min(images, (part + 1) * size))
        names = [f"{number:09d}.jpg" for number in ids.tolist()]
        write_part(store, part, Rows(some(len(ids)), ids, names, np.full(len(ids), -1)), [], "npy", ())
    write_about(store, {
        "schema": SCHEMA, "format": "npy", "dim": args.dim, "parts": len(parts), "part_size": size, "rows": images,
        "classes": [], "complete": True, "set": json.dumps([args.seed, images]),
    })  # fmt: skip
    return some(args.queries)


if __name__ == "__main__":
    script(Args, run)
