"""Time and memory of one rank's order of an epoch, and how well the orders mix a source that is sorted by class.

    python benchmarks/order.py [--samples N] [--ranks N] [--json OUT]

Each measurement is a process of its own; memory is the kernel's VmRSS and VmHWM, so this runs on Linux alone.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from _environment import environment
from pipelines import EpochOrder, ShardedOrder

BATCH = 256  # images of a rank's batch
SHARD = 2000  # images of a shard
CLASSES = 1000
RANKS = 8  # of the mixing


def main() -> None:
    """Measure, print a line for each row, and write the rows where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10**9, metavar="N", help="samples (default: 10^9)")
    parser.add_argument("--ranks", type=int, default=1024, metavar="N", help="ranks (default: 1,024)")
    parser.add_argument("--per-class", type=int, default=1280, metavar="N", help="images of a class (default: 1,280)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the rows and the environment to this file")
    parser.add_argument("--part", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part is not None:
        print(json.dumps(cost(args.samples, args.ranks, args.part)))
        return
    costs = []
    for shape in ({}, {"lanes": 64}, {"lanes": args.ranks}):
        line = [sys.executable, __file__, "--samples", str(args.samples), "--ranks", str(args.ranks)]
        line += ["--part", json.dumps(shape)]
        found = json.loads(subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout)
        costs.append(_shown({"samples": args.samples, "ranks": args.ranks, **found}))
    rows = [_shown(row) for row in mixing(args.per_class)]
    if args.json:
        values = {"environment": environment(), "cost": costs, "mixing": rows}
        args.json.write_text(json.dumps(values, indent=1) + "\n")


def cost(samples: int, ranks: int, shape: dict[str, int]) -> dict[str, Any]:
    """Time and memory of the order of the middle rank in this process; ``shape`` is empty for `global`."""
    ends = np.minimum(np.arange(SHARD, samples + SHARD, SHARD), samples)

    def make(epoch: int, rank: int = ranks // 2, world: int = ranks) -> EpochOrder:
        where = (samples, BATCH * ranks, rank, world, 0, epoch)
        return ShardedOrder(*where, ends=ends, **shape) if shape else EpochOrder(*where)

    make(0).ids(0)  # loads code
    before = _memory_mb("VmRSS")
    starts, orders = [], []
    for epoch in range(1, 6):
        begun = time.perf_counter()
        orders.append(make(epoch))
        orders[-1].ids(orders[-1].steps // 2)
        starts.append(time.perf_counter() - begun)
    order = orders[-1]
    row = {
        "policy": order.policy,
        **shape,
        "global_batch": order.global_batch,
        "shards": len(ends),
        "start_at_the_middle_step_seconds": round(statistics.median(starts), 4),
        "batch_ms": round(_batch_ms(order), 3),
        "five_orders_held_mb": round(_memory_mb("VmRSS") - before, 1),
        "peak_while_starting_mb": round(_memory_mb("VmHWM") - before, 1),
        "shards_read_in_100_steps": _shards_read(order, ends),
    }
    if isinstance(order, ShardedOrder):
        row["shards_of_this_window_and_the_next"] = len(order.coming_shards(order.steps // 2))
    _check(order, make(order.epoch, rank=0, world=1))
    return row


def _batch_ms(order: EpochOrder) -> float:
    times = []
    for step in np.random.default_rng(0).integers(0, order.steps, 300).tolist():
        begun = time.perf_counter()
        order.ids(step)
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times)


def _shards_read(order: EpochOrder, ends: np.ndarray) -> int:
    first = order.steps // 2
    ids = np.concatenate([order.ids(step) for step in range(first, min(first + 100, order.steps))])
    return len(np.unique(np.searchsorted(ends, ids, side="right")))


def _check(order: EpochOrder, alone: EpochOrder) -> None:
    """End the program where a few global batches hold an id twice, or the rank's batch is no slice of them."""
    steps = sorted({0, 1, order.steps // 2, order.steps - 1})
    batches = {step: alone.ids(step) for step in steps}
    together = np.concatenate(list(batches.values()))
    own = slice(order.rank * order.batch, (order.rank + 1) * order.batch)
    if len(np.unique(together)) != len(together):
        raise SystemExit(f"{order} gives an id twice")
    if any((order.ids(step) != batch[own]).any() for step, batch in batches.items()):
        raise SystemExit(f"{order} is no slice of the global batch")


def mixing(per_class: int) -> Iterator[dict[str, Any]]:
    """Chi-square over its degrees of freedom of the classes of an epoch's batches: 1 where they are random samples.

    Of global batches, and of each of eight ranks' parts; of shards that packing has shuffled, and of shards that
    lie as the source does.
    """
    samples = CLASSES * per_class
    ends = np.arange(SHARD, samples + 1, SHARD)
    by_class = np.repeat(np.arange(CLASSES), per_class)
    packed = np.random.default_rng(0).permutation(by_class)
    shapes = [{}, *({"lanes": lanes, "window": window} for lanes in (8, 64, 256) for window in (2000, 4096, 65_536))]
    for shape in shapes:
        order = ShardedOrder(samples, BATCH, ends=ends, **shape) if shape else EpochOrder(samples, BATCH)
        ids = np.array([order.ids(step) for step in range(order.steps)])
        row = {"policy": order.policy, **shape, "shard": SHARD, "classes": CLASSES, "global_batch": BATCH}
        for name, labels in (("packed", packed), ("sorted_by_class", by_class)):
            row[f"{name}_global"] = round(_dispersion(labels[ids]), 3)
            row[f"{name}_rank_of_{RANKS}"] = round(_dispersion(labels[ids].reshape(-1, BATCH // RANKS)), 3)
        yield row


def _dispersion(labels: np.ndarray) -> float:
    counts = np.zeros((len(labels), CLASSES), dtype=np.float32)
    np.add.at(counts, (np.arange(len(labels))[:, None], labels), 1)
    counts = counts[:, counts.any(axis=0)]  # a class may be left over as a whole
    expected = counts.sum(axis=0) * (labels.shape[1] / labels.size)
    chi_square = ((counts - expected) ** 2 / expected).sum(dtype=np.float64)
    return float(chi_square / ((len(labels) - 1) * (counts.shape[1] - 1)))


def _memory_mb(name: str) -> float:
    found = re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    if found is None:
        raise SystemExit(f"/proc/self/status has no {name}: this benchmark runs on Linux alone")
    return int(found[1]) / 1024


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    print(", ".join(f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}" for key, value in row.items()))
    return row


if __name__ == "__main__":
    main()
