"""Seconds from nothing to the first batch of a set with very many shards, and how many of them are opened.

    python benchmarks/startup.py --shards PATH [--records N ...] [--json OUT]

The set is made of one real shard: a manifest of N records, each with that shard's number of images, and links to its
files in place of the shards that the first batches read. No other shard is there, so opening one would be an error.
Each measurement is a process of its own; imports are counted apart, for they do not depend on the set.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

PREFETCH = 2
STEPS = PREFETCH + 2  # batches that may be begun before the first one is handed out
WHERE = {"rank": 0, "world_size": 1, "seed": 0}


def main() -> None:
    """Measure, print a line for each row, and write the rows where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, metavar="PATH", help="packed set with the real shard")
    parser.add_argument("--records", type=int, nargs="+", default=[1000, 10_000, 100_000], metavar="N")
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="images (default: 256)")
    parser.add_argument("--image-size", type=int, default=224, metavar="N", help="side of a view (default: 224)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="processes of each row (default: 5)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the rows and the environment to this file")
    parser.add_argument("--order", choices=("global", "sharded"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.order:
        print(json.dumps(first_batch(args.shards, args.order, args.batch_size, args.image_size)))
        return
    rows = []
    for count in args.records:
        with tempfile.TemporaryDirectory(prefix="fastmoco-") as folder:
            make_set(args.shards, Path(folder), count, args.batch_size)
            rows += [_row(folder, order, args) for order in ("global", "sharded")]
    if args.json:
        from _environment import environment  # imports torch, which is measured

        args.json.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")


def _row(folder: str, order: str, args: argparse.Namespace) -> dict[str, Any]:
    line = [sys.executable, __file__, "--shards", folder, "--order", order]
    line += ["--batch-size", str(args.batch_size), "--image-size", str(args.image_size)]
    runs = [json.loads(subprocess.check_output(line, text=True)) for _ in range(args.repeats)]
    row = {"records": runs[0]["records"], "order": order, "batch_size": args.batch_size}
    row["image_size"] = args.image_size
    names = (
        "shards_read",
        "shards_opened",
        "import_seconds",
        "open_seconds",
        "first_batch_seconds",
        "together_seconds",
    )
    for name in (*names, "rss_mb"):
        row[name] = round(statistics.median(run[name] for run in runs), 3)
    row["slowest_together_seconds"] = round(max(run["together_seconds"] for run in runs), 3)
    print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return row


def make_set(real: Path, folder: Path, count: int, batch: int) -> None:
    """Make a set of ``count`` shards in ``folder``, of which those are there that the first batches read."""
    import numpy as np

    from pipelines import PipelineOptions
    from pipelines.order.policy import epoch_orders
    from shards import ShardSet
    from shards.format.manifest import MANIFEST, read_manifest

    manifest = read_manifest(real / MANIFEST)
    template = manifest.records[0]

    def record(shard: int):
        made_up = hashlib.sha256(str(shard).encode()).hexdigest()
        return replace(template, name=f"shard-{shard:06d}", sha256=made_up, index_sha256=made_up[::-1])

    totals = {"samples": count * template.samples, "bytes": count * template.bytes}
    made = replace(manifest, records=tuple(record(shard) for shard in range(count)), **totals)
    (folder / MANIFEST).write_bytes(made.to_bytes())
    with ShardSet(folder) as shards:
        for policy in ("global", "sharded"):
            order = epoch_orders(shards, PipelineOptions(order=policy), global_batch=batch, **WHERE)(0)
            ids = np.concatenate([order.ids(step) for step in range(STEPS)])
            for shard in np.unique(np.searchsorted(shards.ends, ids, side="right")).tolist():
                for ending in ("tar", "npy"):
                    link = folder / f"shard-{shard:06d}.{ending}"
                    if not link.exists():
                        link.symlink_to((real / f"{template.name}.{ending}").resolve())


def first_batch(folder: Path, order: Any, batch: int, size: int) -> dict[str, Any]:
    """Times of this process, and what it opened."""
    opened: set[str] = set()
    begun = time.perf_counter()
    import numpy as np

    from pipelines import PipelineOptions, ViewSpec, build
    from shards import ShardSet

    imported = time.perf_counter()
    sys.addaudithook(lambda event, details: opened.add(str(details[0])) if event == "open" else None)
    shards = ShardSet(folder)
    open_at = time.perf_counter()
    options = PipelineOptions(pipeline="torch", order=order, prefetch=PREFETCH)
    with build(shards, ViewSpec.moco_v2(size), options, global_batch=batch) as pipeline:
        batches = iter(pipeline.epoch(0))  # held: letting go of it waits for the batch that is being made
        ids = next(batches).ids.numpy()
        done = time.perf_counter()
        opened = {name for name in opened if name.endswith(".tar")}  # by now of the batches being made as well
        if pipeline.quarantined:
            raise SystemExit(f"{pipeline.quarantined} images could not be read from {folder}")
    needed = len(np.unique(np.searchsorted(shards.ends, ids, side="right")))
    if len(opened) < needed:
        raise SystemExit(f"the first batch needs {needed} shards, and {len(opened)} were seen to be opened")
    rss = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return {
        "records": len(shards.manifest.records),
        "shards_read": needed,
        "shards_opened": len(opened),
        "import_seconds": imported - begun,
        "open_seconds": open_at - imported,
        "first_batch_seconds": done - open_at,
        "together_seconds": done - imported,
        "rss_mb": int(rss.split()[1]) / 1024,
    }


if __name__ == "__main__":
    main()
