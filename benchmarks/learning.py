"""The papers' experiments: every variant of one, trained with several seeds, probed, and shown beside the papers'.

    python benchmarks/learning.py momentum --train SHARDS --val SHARDS --set photocrops [--seeds 0 1 2] [--jobs 2]

Flags that it does not know go to every training, and override the variant's. Trains by the ordinary commands (a run
that was cut off goes on where it was, a finished one is not repeated), then writes all probes with their settings and
provenance to RESULTS/NAME_SET.csv, the table made of them to RESULTS/NAME_SET.md and the plot to RESULTS/NAME_SET.svg.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from _charts import require
from _command import BenchmarkError, at_least
from _learning.experiments import EXPERIMENTS, Experiment, Scale, Variant
from _learning.plot import plot
from _learning.runs import Run, RunFailed
from _learning.table import table
from _results import write_beside, write_csv
from fastmoco.probes.sets import LabelledSets
from shards.command import command


@dataclass(frozen=True)
class Args:
    """Train the variants of an experiment with several seeds and compare their accuracy."""

    name: tyro.conf.Positional[Literal["small-photos", "mechanisms", "momentum", "encoders", "pieces", "baselines"]]
    """Which experiment."""
    train: Path
    """Labelled shard set to train on; without --supervised variants its labels are used by the probes alone."""
    val: Path
    """Labelled shard set that the probes classify."""
    scale: Scale = "small"
    """small: minutes a run on a CPU core; imagenet: the papers' settings."""
    set: str = ""
    """What the sets are called; part of the results' names."""
    variants: tuple[str, ...] = ()
    """Variants to train; default: all of the experiment."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each variant."""
    jobs: int = 1
    """Runs at the same time; the cores are shared among them."""
    processes: int = 1
    """Ranks of a MoCo training, as one for each GPU of this machine."""
    runs: Path = Path("runs/learning")
    """Folder of the run folders."""
    results: Path = Path(__file__).resolve().parent / "results"
    """Folder for the rows, the table and the plot."""

    @property
    def label(self) -> str:
        """What the results and the run folders are called."""
        return "_".join(part for part in (self.name, self.set) if part).replace("-", "_")


def main() -> None:
    """Entry of the script."""
    # not `script`: flags that are not of this script go to the training
    command("learning", lambda: run(*tyro.cli(Args, prog="learning.py", return_unknown_args=True)))


def run(args: Args, flags: Sequence[str]) -> int:
    """Train and probe what is not done yet, write what is known, and return the exit code: 1 where a run failed."""
    experiment = EXPERIMENTS[args.name]
    if experiment.plotted:
        require()
    variants, sizes = chosen(args, experiment), sizes_of(args)
    wanted = runs(args, experiment, variants, flags)
    with ThreadPoolExecutor(args.jobs) as pool:
        failures = [failure for failure in pool.map(attempt, wanted) if failure]
    rows = [row | sizes for run in wanted for row in run.rows()]
    if rows:
        write(args, experiment, rows)
    if failures:
        print(f"learning: {len(failures)} of {len(wanted)} runs failed; {failures[0]}", file=sys.stderr)
    return int(bool(failures))


def chosen(args: Args, experiment: Experiment) -> dict[str, Variant]:
    """The variants asked for; raises BenchmarkError."""
    at_least(1, args, "jobs", "processes")
    if not all(letter.isalnum() or letter in "-_" for letter in args.set):
        raise BenchmarkError(f"--set {args.set!r} is part of file names; use letters, digits, - and _")
    if args.scale not in experiment.variants:
        raise BenchmarkError(f"{args.name} has no --scale {args.scale}; use --scale small")
    known = experiment.variants[args.scale]
    unknown = [name for name in args.variants if name not in known]
    if unknown:
        raise BenchmarkError(f"--variants {unknown[0]!r} is not known; use any of {', '.join(known)}")
    return {name: known[name] for name in args.variants or known}


def sizes_of(args: Args) -> dict[str, int]:
    """Labelled images and classes of the sets; raises ProbeError or ShardSetError."""
    sets = LabelledSets(args.train, args.val)
    return {"train_images": len(sets.train_ids), "val_images": len(sets.val_ids), "classes": sets.classes}


def runs(args: Args, experiment: Experiment, variants: dict[str, Variant], flags: Sequence[str]) -> list[Run]:
    """All variants with the first seed, then with the next one."""
    threads = max(1, len(os.sched_getaffinity(0)) // args.jobs)
    folder = args.runs / (f"{args.name}-{args.set}" if args.set else args.name)
    linear = experiment.linear[args.scale] if experiment.linear else {}
    return [
        Run(
            name, variant, seed, folder / f"{name}-seed{seed}", args.train, args.val, linear, flags, threads,
            args.processes,
        )
        for seed in args.seeds
        for name, variant in variants.items()
    ]  # fmt: skip


def attempt(run: Run) -> str:
    """Make a run; the reason where that failed, or nothing."""
    try:
        run.make()
    except RunFailed as reason:
        return str(reason)
    return ""


def write(args: Args, experiment: Experiment, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows, table and chart, and print the table."""
    path, text = args.results / f"{args.label}.csv", table(args.name, experiment, args.scale, rows)
    write_csv(path, rows)
    write_beside(path, text, plot(args.name, experiment, args.scale, args.set, rows) if experiment.plotted else None)
    print(text)


if __name__ == "__main__":
    main()
