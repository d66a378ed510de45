"""Milliseconds to draw all parameters of both views of a batch, on one core.

python benchmarks/draws.py [--batch-size N] [--json OUT]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import numpy as np

from _environment import environment
from pipelines import ViewSpec, draw


def main() -> None:
    """Measure both recipes, print a line for each, and write the rows where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="images (default: 256)")
    parser.add_argument("--repeats", type=int, default=500, metavar="N", help="batches (default: 500)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the rows and the environment to this file")
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = []
    for recipe in (ViewSpec.moco_v1, ViewSpec.moco_v2):
        times = measure(recipe(), args.batch_size, args.repeats)
        ninety = statistics.quantiles(times, n=10)[-1]
        row = {"recipe": recipe.__name__, "batch_size": args.batch_size, "repeats": args.repeats}
        row |= {"median_ms": round(statistics.median(times), 3), "ninth_decile_ms": round(ninety, 3)}
        rows.append(row)
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")


def measure(spec: ViewSpec, batch: int, repeats: int) -> list[float]:
    """Milliseconds of each batch; its ids and image sizes are random."""
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
    main()
