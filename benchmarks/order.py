"""Time and memory of one rank's order of an epoch, and how well orders mix a source that is sorted by class.

    python benchmarks/order.py [--samples N] [--ranks N] [--json OUT]

Each cost is measured in a separate process; memory is the kernel's VmRSS and VmHWM (Linux only).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from _command import script
from _environment import environment
from _memory import memory
from _processes import in_process
from _results import show, write_json
from fastmoco.flags import at_least
from pipelines import EpochOrder, ShardedOrder

# the papers' batch and number of GPUs, the default size of a shard, and ImageNet's 1,000 classes
BATCH = 256  # images per batch of a rank
SHARD = 2000  # images per shard
CLASSES = 1000
RANKS = 8  # ranks of the mixing
MIB = 1 << 20


@dataclass(frozen=True)
class Args:
    """Measure the cost of an epoch's order, and how well the orders mix classes."""

    samples: int = 10**9
    """Samples of the set."""
    ranks: int = 1024
    """Ranks."""
    per_class: int = 1280
    """Images per class, for the mixing."""
    json: Path | None = None
    """File for the rows and the environment."""


def run(args: Args) -> None:
    """Measure, print a line for each row, and write the rows."""
    at_least(1, args, "samples", "ranks", "per_class")
    size = {"samples": args.samples, "ranks": args.ranks}
    costs = []
    # the default lanes and one lane for each rank: with fewer lanes than ranks, neighbouring ranks read the same shards
    for shape in ({}, {"lanes": 64}, {"lanes": args.ranks}):
        costs.append(show(size | in_process("order", "cost", size | {"shape": shape})))
    rows = [show(row) for row in mixing(args.per_class)]
    if args.json:
        write_json(args.json, {"environment": environment(), "cost": costs, "mixing": rows})


def cost(samples: int, ranks: int, shape: dict[str, Any]) -> dict[str, Any]:
    """Time and memory of the middle rank's order in this process; `shape` is empty for the policy `global`."""
    ends = np.minimum(np.arange(SHARD, samples + SHARD, SHARD), samples)

    def make(epoch: int, rank: int = ranks // 2, world: int = ranks) -> EpochOrder:
        where = (samples, BATCH * ranks, rank, world, 0, epoch)
        return ShardedOrder(*where, ends=ends, **shape) if shape else EpochOrder(*where)

    make(0).ids(0)  # loads code
    before = memory("VmRSS")
    starts, orders = [], []
    for epoch in range(1, 6):
        begun = time.perf_counter()
        # all five are kept, so that their memory can be read below
        orders.append(make(epoch))
        # in the middle: an order that had to count up to its place would be fast at the first step only
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
        "five_orders_held_mb": round((memory("VmRSS") - before) / MIB, 1),
        "peak_while_starting_mb": round((memory("VmHWM") - before) / MIB, 1),
        "shards_read_in_100_steps": _shards_read(order, ends),
    }
    if isinstance(order, ShardedOrder):
        row["shards_of_this_window_and_the_next"] = len(order.coming_shards(order.steps // 2))
    # last, because the global batches that it makes would count towards the peak memory
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
    """Raise RuntimeError if global batches repeat an id, or the rank's batch is not a slice of them; checks a few."""
    steps = sorted({0, 1, order.steps // 2, order.steps - 1})
    batches = {step: alone.ids(step) for step in steps}
    together = np.concatenate(list(batches.values()))
    own = slice(order.rank * order.batch, (order.rank + 1) * order.batch)
    if len(np.unique(together)) != len(together):
        raise RuntimeError(f"{order} repeats an id")
    if any((order.ids(step) != batch[own]).any() for step, batch in batches.items()):
        raise RuntimeError(f"{order} is not a slice of the global batch")


def mixing(per_class: int) -> Iterator[dict[str, Any]]:
    """Chi-square of the classes in an epoch's batches over its degrees of freedom: 1 if batches are random samples.

    For global batches and for the parts of eight ranks; for shards that packing shuffled and for shards in the order
    of the source.
    """
    samples = CLASSES * per_class
    ends = np.arange(SHARD, samples + 1, SHARD)
    by_class = np.repeat(np.arange(CLASSES), per_class)
    packed = np.random.default_rng(0).permutation(by_class)
    # around the defaults of 64 lanes and windows of 4,096; a window of 2,000 is one shard
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
    counts = counts[:, counts.any(axis=0)]  # a class may be missing from the epoch
    expected = counts.sum(axis=0) * (labels.shape[1] / labels.size)
    chi_square = ((counts - expected) ** 2 / expected).sum(dtype=np.float64)
    return float(chi_square / ((len(labels) - 1) * (counts.shape[1] - 1)))


if __name__ == "__main__":
    script(Args, run)
