"""Two runs side by side, one of them with faults at random: speed, memory, open files, and whether they end equal.

    python benchmarks/endurance.py [--minutes 60] [--seed 0] [--json OUT]

Both train the same for the same number of steps, on several ranks under torchrun, and read their set from a web server
on this machine. They take turns: while one has its slice of time, the processes of the other are stopped by SIGSTOP, so
that both meet the same machine and neither starts anew. Half of the slices of the second run have a fault: a rank is
killed, a rank is stopped for a while, the disk of its run folder is full, the store is away or refuses one request in
five, or the run is stopped in order (SIGUSR1) and started again by the same command.

Ends with exit code 1 if the checkpoints or figures of the two differ, if an image was replaced, if the mean speed of
the second run's slices without a fault lies outside the undisturbed ones' (mean ± two standard deviations), or if
memory or open files grow by more than the limits and three times their error. Linux only. A disk is filled only if this
process may mount one; otherwise the run's files are limited in size.
"""

from __future__ import annotations

import random
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _command import BenchmarkError, script
from _endurance.disk import small_disk
from _endurance.made import differences
from _endurance.store import serving
from _endurance.turns import DISK, KINDS, Contender, Slice, calibrated
from _endurance.verdict import judged, summary
from _environment import environment
from _results import add_row, write_json
from fastmoco.demo.made import make_images
from fastmoco.flags import at_least
from shards import PackOptions, pack


@dataclass(frozen=True)
class Args:
    """Train with and without faults, side by side."""

    minutes: float = 60.0
    """Length of the whole; the number of steps follows from the speed at the start."""
    slice: float = 30.0
    """Seconds of a turn."""
    ranks: int = 2
    """Ranks of each run."""
    threads: int = 1
    """Threads of a rank."""
    seed: int = 0
    """Of the faults."""
    faults: float = 0.5
    """Share of the second run's slices that have a fault."""
    json: Path | None = None
    """File for the result, the slices and the environment."""


def run(args: Args) -> int:
    """Make both runs in turns, print each slice, and write the result; returns the exit code."""
    at_least(1, args, "ranks", "threads")
    if args.slice < 5 or args.minutes * 60 < 8 * args.slice:
        raise BenchmarkError(f"--slice {args.slice:g} s: give 5 or more, and --minutes of at least eight slices")
    chance, slices = random.Random(args.seed), []
    with tempfile.TemporaryDirectory(prefix="endurance-") as folder, ExitStack() as stack:
        work = Path(folder)
        make_images(work / "photos", classes=8, per_class=64, size=64, seed=0)
        pack(PackOptions(work / "photos", work / "set", shard_size=128), progress=False)
        steps = calibrated(work, args.ranks, args.threads, args.minutes, args.slice)
        print(f"{steps:,} steps for each run, in turns of {args.slice:g} s", flush=True)
        contenders = []
        for name in ("undisturbed", "with faults"):
            home = work / name.replace(" ", "-")
            home.mkdir()
            stack.enter_context(small_disk(home, DISK))
            server = stack.enter_context(serving(work / "set"))
            contenders.append(stack.enter_context(Contender(name, home, server, steps, args.ranks, args.threads)))
        while not all(one.finished for one in contenders):
            for one in (one for one in contenders if not one.finished):
                disturbed = one is contenders[1] and len(slices) > 3 and chance.random() < args.faults
                kind = chance.choice(KINDS) if disturbed else ""
                slices.append(one.turn(args.slice, kind, chance))
                print(slices[-1], flush=True)
        wrong = differences(contenders[1].run, contenders[0].run)
        result = summary(slices) | {"differences": wrong, "steps": steps, "starts": contenders[1].starts}
    print("\n".join(wrong) or "checkpoints and figures of both runs are equal, and no image was replaced")
    _write(args, result, slices)
    lines, code = judged(result)
    print("\n".join(lines))
    return code


def _write(args: Args, result: dict[str, Any], slices: list[Slice]) -> None:
    if args.json is None:
        return
    about = {"minutes": args.minutes, "slice": args.slice, "ranks": args.ranks, "seed": args.seed}
    write_json(args.json, {**about, **result, "environment": environment()})
    rows = args.json.with_suffix(".slices.jsonl")
    rows.unlink(missing_ok=True)
    for one in slices:
        add_row(rows, one.row())


if __name__ == "__main__":
    script(Args, run)
