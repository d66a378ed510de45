"""Milliseconds to draw all parameters of both views of a batch, on one core.

python benchmarks/draws.py [--batch-size N] [--json OUT]
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from _command import script
from _environment import environment
from _results import show, write_json
from fastmoco.flags import at_least
from pipelines import ViewSpec, draw


@dataclass(frozen=True)
class Args:
    """Time the random draws of both recipes."""

    batch_size: int = 256
    """Images per batch."""
    repeats: int = 500
    """Batches."""
    json: Path | None = None
    """File for the rows and the environment."""


def run(args: Args) -> None:
    """Measure both recipes, print a line for each, and write the rows."""
    at_least(1, args, "batch_size")
    at_least(2, args, "repeats")  # quantiles need two values
    # the cost is stated per core: a pipeline draws in one thread, beside the threads that decode
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = []
    for recipe in (ViewSpec.moco_v1, ViewSpec.moco_v2):
        times = measure(recipe(), args.batch_size, args.repeats)
        # other processes can only slow a batch down: the median is nearly free of them, and the ninth decile shows them
        ninety = statistics.quantiles(times, n=10)[-1]
        row = {"recipe": recipe.__name__, "batch_size": args.batch_size, "repeats": args.repeats}
        row |= {"median_ms": round(statistics.median(times), 3), "ninth_decile_ms": round(ninety, 3)}
        rows.append(show(row))
    if args.json:
        write_json(args.json, {"environment": environment(), "rows": rows})


def measure(spec: ViewSpec, batch: int, repeats: int) -> list[float]:
    """Milliseconds per batch, with random ids and image sizes."""
    random = np.random.default_rng(0)
    times = []
    for step in range(repeats + 1):
        ids, sizes = random.integers(0, 10**9, batch), random.integers(200, 600, (batch, 2)).astype(np.int32)
        begun = time.perf_counter()
        for view in (0, 1):
            draw(spec, seed=0, epoch=step, ids=ids, sizes=sizes, view=view)
        times.append(1000 * (time.perf_counter() - begun))
    return times[1:]  # the first one loads code


if __name__ == "__main__":
    script(Args, run)
