"""Bytes and time of shuffled BatchNorm per rank, compared with the original's all-gather, over gloo on this machine.

    python benchmarks/communication.py [--ranks 2 4 8] [--json OUT]

Counts the bytes that collectives deliver to each rank in a step, and fails if they differ from the formula. The formula
then extends the rows to 1,024 ranks. The keys of each way are checked before it is timed. `--json OUT` writes the rows
and the environment, with a table (.md) and a chart (.svg) beside them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from _charts import require
from _command import script
from _communication.show import chart, markdown
from _communication.ways import FEATURES, WAYS
from _environment import environment
from _processes import python
from _results import show, write_beside, write_json
from fastmoco.flags import at_least

# far more than one machine can run; the counts of those that it can run must equal the formula first
FORMULA_RANKS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Args:
    """Count and time the communication of shuffled BatchNorm per rank."""

    ranks: tuple[int, ...] = (2, 4, 8)
    """Numbers of ranks to measure."""
    batch: int = 32
    """Images per rank."""
    image_size: int = 224
    """Side of an image in pixels."""
    repeats: int = 5
    """Timed steps of each way to shuffle."""
    json: Path | None = None
    """File for the rows and the environment; a table (.md) and a chart (.svg) are written beside it."""


def run(args: Args) -> None:
    """Measure with each number of ranks, print a line for each row, and write rows, table and chart."""
    at_least(1, args, "ranks", "batch", "image_size", "repeats")
    if args.json:
        require()
    measured = []
    for ranks in args.ranks:
        # --standalone chooses a free port: two runs on a machine would meet at torchrun's default port
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks)
        printed = python(*launcher, "-m", "_communication.rank", args.batch, args.image_size, args.repeats)
        measured += [show(row) for row in json.loads(printed)]
    formula = [
        {"ranks": ranks, "way": name, **way.formula(ranks, args.batch, args.image_size)}
        for ranks in FORMULA_RANKS
        for name, way in WAYS.items()
    ]
    settings = {"batch": args.batch, "image_size": args.image_size, "features": FEATURES, "repeats": args.repeats}
    result = {"environment": environment(), "settings": settings, "measured": measured, "formula": formula}
    if args.json:
        write_json(args.json, result)
        write_beside(args.json, markdown(result), chart(result))


if __name__ == "__main__":
    script(Args, run)
