"""What the user asks of a packing: where from, where to, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import PackError
from shards.format.layout import MAX_SHARD_SIZE
from shards.images.options import MAX_PIXELS, MAX_SIDE, MIN_SIDE, EncodeOptions

SOURCES = ("auto", "folder", "list", "csv", "parquet", "tars")
EXECUTORS = ("local", "ray")


@dataclass(frozen=True)
class PackOptions:
    """What to pack, where to, and how.

    Attributes:
        src: Folder, list or table of images, or tars; a local path or an fsspec URL.
        out: Folder of the shard set, local or an fsspec URL; made where it does not exist.
        source: Kind of `src`: `auto` tells it by its name and content.
        root: What relative paths in a list or table are relative to; None: the folder it lies in.
        path_column: Column of a CSV or Parquet table that holds the images' paths or URLs.
        label_column: Its column of labels, numbers or names; None: no labels.
        workers: Processes, or concurrent tasks on Ray; 0 takes one per core. The bytes do not depend on it.
        shard_size: Images per shard before bad ones are left out.
        resize: See EncodeOptions, as for `quality`, `max_side`, `max_pixels` and `check`.
        quality: See EncodeOptions.
        max_side: See EncodeOptions.
        max_pixels: See EncodeOptions.
        check: See EncodeOptions.
        seed: Seed of the global order.
        limit: Take the first so many images of the global order, that is, a random part.
        overwrite: Remove another set that lies in `out`.
        executor: `local` packs in this process or a pool of processes, `ray` on a Ray cluster.
        ray_address: Address of the cluster; None starts a local Ray.
        dry_run: Make the plan, say what it holds, and stop before any image is read.
    """

    src: str | Path
    out: str | Path
    source: str = "auto"
    root: str | Path | None = None
    path_column: str = "path"
    label_column: str | None = None
    workers: int = 0
    shard_size: int = 2000
    resize: int | None = None
    quality: int = 90
    max_side: int = MAX_SIDE
    max_pixels: int = MAX_PIXELS
    check: bool = True
    seed: int = 0
    limit: int | None = None
    overwrite: bool = False
    executor: str = "local"
    ray_address: str | None = None
    dry_run: bool = False

    @property
    def encoding(self) -> EncodeOptions:
        """What is done to each image."""
        return EncodeOptions(self.resize, self.quality, self.max_side, self.max_pixels, self.check)

    def deciding(self) -> dict[str, Any]:
        """The options that decide the bytes of the set, besides the source itself."""
        names = ("shard_size", "resize", "quality", "max_side", "max_pixels", "check", "seed", "limit")
        return {name: getattr(self, name) for name in names}

    def validate(self) -> None:
        """Raise PackError where a value is out of its range."""
        ranges = {
            "workers": (self.workers, 0, 1024),
            "shard-size": (self.shard_size, 1, MAX_SHARD_SIZE),
            "resize": (self.resize, MIN_SIDE, MAX_SIDE),
            "quality": (self.quality, 1, 95),
            "max-side": (self.max_side, MIN_SIDE, MAX_SIDE),
            "max-pixels": (self.max_pixels, MIN_SIDE * MIN_SIDE, MAX_PIXELS),
            "seed": (self.seed, 0, 2**63 - 1),
            "limit": (self.limit, 1, 2**63 - 1),
        }
        for name, (value, low, high) in ranges.items():
            if value is not None and not low <= value <= high:
                raise PackError(f"--{name} {value} is outside {low}..{high}")
        for name, value, known in (("source", self.source, SOURCES), ("executor", self.executor, EXECUTORS)):
            if value not in known:
                raise PackError(f"unknown --{name} {value!r}; known: {', '.join(known)}")
