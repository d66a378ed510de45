"""Time to the first batch of a set with very many shards, and the number of shards opened for it.

    python benchmarks/startup.py --shards PATH [--records N ...] [--json OUT]

The set is built from one real shard: a manifest of N records, each with that shard's number of images, and links to its
files for the shards that the first batches read. All other shards are missing, so opening one would be an error. Each
measurement is a separate process. Imports are timed separately, because they do not depend on the set.
"""

from __future__ import annotations

import hashlib
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from _command import script
from _environment import environment
from _first_batch import PREFETCH
from _processes import in_process
from _results import show, write_json
from fastmoco.flags import at_least
from pipelines import PipelineOptions
from pipelines.order.policy import epoch_orders
from shards import ShardSet
from shards.format.manifest import MANIFEST
from shards.format.parsing import read_manifest

STEPS = PREFETCH + 2  # batches that may have been started when the first one is returned
MEDIANS = ("shards_read", "shards_opened", "import_seconds", "open_seconds", "first_batch_seconds", "together_seconds",
           "rss_mb")  # fmt: skip


@dataclass(frozen=True)
class Args:
    """Measure the start of a pipeline on sets with very many shards."""

    shards: Path
    """Packed set to take the real shard from."""
    records: tuple[int, ...] = (1000, 10_000, 100_000)
    """Numbers of shards to measure."""
    batch_size: int = 256
    """Images per batch."""
    image_size: int = 224
    """Side of a view, in pixels."""
    repeats: int = 5
    """Processes per row."""
    json: Path | None = None
    """File for the rows and the environment."""


def run(args: Args) -> None:
    """Measure, print a line for each row, and write the rows."""
    at_least(1, args, "records", "batch_size", "image_size", "repeats")
    rows = []
    for count in args.records:
        with tempfile.TemporaryDirectory(prefix="fastmoco-") as folder:
            make_set(args.shards, Path(folder), count, args.batch_size)
            rows += [_row(folder, order, args) for order in ("global", "sharded")]
    if args.json:
        write_json(args.json, {"environment": environment(), "rows": rows})


def _row(folder: str, order: str, args: Args) -> dict[str, Any]:
    given = {"folder": folder, "order": order, "batch": args.batch_size, "size": args.image_size}
    # a process for each: imports and the compiled loops are loaded once in a process, and that is a part of the start
    runs = [in_process("_first_batch", "first_batch", given) for _ in range(args.repeats)]
    row = {"records": runs[0]["records"], "order": order, "batch_size": args.batch_size}
    row |= {"image_size": args.image_size}
    row |= {name: round(statistics.median(run[name] for run in runs), 3) for name in MEDIANS}
    return show(row | {"slowest_together_seconds": round(max(run["together_seconds"] for run in runs), 3)})


def make_set(real: Path, folder: Path, count: int, batch: int) -> None:
    """Write a set of `count` shards to `folder`, in which only the shards of the first batches exist."""
    manifest = read_manifest(real / MANIFEST)
    template = manifest.records[0]

    def record(shard: int):
        made_up = hashlib.sha256(str(shard).encode()).hexdigest()
        return replace(template, name=f"shard-{shard:06d}", sha256=made_up)

    totals = {"samples": count * template.samples, "bytes": count * template.bytes}
    made = replace(manifest, records=tuple(record(shard) for shard in range(count)), **totals)
    (folder / MANIFEST).write_bytes(made.to_bytes())
    with ShardSet(folder) as shards:
        for policy in ("global", "sharded"):
            options = PipelineOptions(order=policy)
            order = epoch_orders(shards, options, global_batch=batch, rank=0, world_size=1, seed=0)(0)
            ids = np.concatenate([order.ids(step) for step in range(STEPS)])
            for shard in np.unique(np.searchsorted(shards.ends, ids, side="right")).tolist():
                for ending in ("tar", "npy"):
                    link = folder / f"shard-{shard:06d}.{ending}"
                    if not link.exists():
                        link.symlink_to((real / f"{template.name}.{ending}").resolve())


if __name__ == "__main__":
    script(Args, run)
