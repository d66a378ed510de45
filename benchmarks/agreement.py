"""Time of the agreement that all ranks make before each step, on one machine.

    python benchmarks/agreement.py [--ranks 2 3 4] [--json OUT]

- vote: as a run does it, with log2 N messages one after the other;
- all-reduce: gloo's own, a ring, with the same two numbers.

Both are timed in turn, on ranks with one thread each.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _command import script
from _environment import environment
from _processes import python
from _results import show, write_json
from fastmoco.flags import at_least


@dataclass(frozen=True)
class Args:
    """Time the agreement before each step."""

    ranks: tuple[int, ...] = (2, 3, 4)
    """Numbers of ranks to measure."""
    repeats: int = 2000
    """Agreements of each way."""
    json: Path | None = None
    """File for the rows and the environment."""


def run(args: Args) -> None:
    """Measure with each number of ranks, print a line for each row, and write the rows."""
    at_least(2, args, "ranks")
    at_least(1, args, "repeats")
    rows = []
    for ranks in args.ranks:
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks)
        taken = json.loads(python(*launcher, "-m", "_agreement", args.repeats))
        rows += [show(_row(ranks, way, times)) for way, times in taken.items()]
    if args.json:
        write_json(args.json, {"rows": rows, "environment": environment()})


def _row(ranks: int, way: str, times: list[float]) -> dict[str, Any]:
    low, *_, high = statistics.quantiles(times, n=20)
    median = statistics.median(times)
    return {"ranks": ranks, "way": way, "ms": round(median, 3), "p5": round(low, 3), "p95": round(high, 3)}


if __name__ == "__main__":
    script(Args, run)
