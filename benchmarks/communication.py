"""Bytes and time of shuffled BatchNorm for a rank, against the original's all-gather, over gloo on this machine.

    python benchmarks/communication.py [--ranks 2 4 8] [--json OUT]

Counts what the collectives deliver to each rank in a step, ends with an error where that is not what the formula
says, and goes on by the formula to 1,024 ranks. Every way's keys are checked before it is timed. `--json OUT` writes
the rows with their environment, and a table (.md) and a chart (.svg) beside them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from _communication.show import chart, markdown
from _communication.ways import FEATURES, WAYS, Way, counted
from _environment import environment

FORMULA_RANKS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def main() -> None:
    """Measure with each number of ranks, print a line for each row, and write the rows where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8], metavar="N", help="ranks to measure")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="images of a rank (default: 32)")
    parser.add_argument("--image-size", type=int, default=224, metavar="N", help="pixels (default: 224)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed steps of each way (default: 5)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the rows and the environment to this file")
    parser.add_argument("--part", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        _part(args)
        return
    measured = [row for ranks in args.ranks for row in _measured(ranks, args)]
    formula = [
        {"ranks": ranks, "way": name, **way.formula(ranks, args.batch, args.image_size)}
        for ranks in FORMULA_RANKS
        for name, way in WAYS.items()
    ]
    settings = {"batch": args.batch, "image_size": args.image_size, "features": FEATURES, "repeats": args.repeats}
    result = {"environment": environment(), "settings": settings, "measured": measured, "formula": formula}
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
        args.json.with_suffix(".md").write_text(markdown(result))
        args.json.with_suffix(".svg").write_text(chart(result))


def _measured(ranks: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), __file__]
    line += ["--part", "--batch", str(args.batch), "--image-size", str(args.image_size)]
    done = subprocess.run([*line, "--repeats", str(args.repeats)], stdout=subprocess.PIPE, text=True, check=True)
    rows = json.loads(done.stdout)
    for row in rows:
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return rows


def _part(args: argparse.Namespace) -> None:
    """Be one rank of a measurement; rank 0 prints the rows."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    shape = ranks * args.batch, 3, args.image_size, args.image_size
    everything = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    rows = []
    for name, way in WAYS.items():
        received = _checked(way, everything, rank, args)
        rows.append({"ranks": ranks, "way": name, **received})
    own = everything[rank * args.batch :][: args.batch].clone(memory_format=torch.channels_last)
    for step in range(args.repeats):
        for name, way in WAYS.items():
            seconds[name].append(_timed(way, own.to(way.dtype), step))
    for row in rows:
        times = [1000 * t for t in seconds[row["way"]]]
        row["ms"] = round(statistics.median(times), 1)
        row["lowest"], row["highest"] = round(min(times), 1), round(max(times), 1)
    if rank == 0:
        print(json.dumps(rows))
    dist.destroy_process_group()


def _checked(way: Way, everything: torch.Tensor, rank: int, args: argparse.Namespace) -> dict[str, int]:
    """Bytes of a step; ends the program where keys are not those of all images in order, or the formula is wrong."""
    expected = _encode(everything.to(way.dtype))
    own = everything[rank * args.batch :][: args.batch].to(way.dtype)
    with counted() as received:
        keys = way.keys(own, _encode, 1)
    if not torch.equal(keys, expected):
        raise SystemExit(f"{way.label}: the keys are not those of the images")
    formula = way.formula(dist.get_world_size(), args.batch, args.image_size)
    if received != formula:
        raise SystemExit(f"{way.label}: rank {rank} received {received}, where the formula has {formula}")
    return received


def _encode(images: torch.Tensor) -> torch.Tensor:
    """Stands for the encoder, which every way runs alike: some of the pixels."""
    return images[:, 0].flatten(1)[:, :FEATURES].float().contiguous()


def _timed(way: Way, images: torch.Tensor, step: int) -> float:
    """Seconds of the slowest rank."""
    dist.barrier()
    begun = time.perf_counter()
    way.keys(images, _encode, step)
    taken = torch.tensor(time.perf_counter() - begun)
    dist.all_reduce(taken, dist.ReduceOp.MAX)
    return taken.item()


if __name__ == "__main__":
    main()
