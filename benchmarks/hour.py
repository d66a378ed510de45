"""Accuracy in equal time: which settings learn most in the same time of training steps on a small machine.

    python benchmarks/hour.py --train SHARDS --val SHARDS --set photos --pace 3
    python benchmarks/hour.py --train SHARDS --val SHARDS --set photos [--minutes 10] [--jobs 2]

The first command measures on a still machine what a step of each variant takes, loader included: --pace rounds, in each
of which all kinds of steps have their turn. The second one trains each variant for as many steps as --minutes hold at
that pace, by the ordinary commands, one thread a run, and probes it. So accuracies do not depend on the machine's load.
Rows are written as soon as a run has ended, and the same command continues with those that are missing. They go to
RESULTS/hour_SET.csv, those of the pace to RESULTS/hour_SET_pace.csv, with a table (.md) and a chart (.svg).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from _charts import require
from _command import BenchmarkError, script
from _learning.budget import EXPERIMENT, paces, seconds_per_step, steps_of, works
from _learning.budget_table import table
from _learning.experiments import Variant
from _learning.plot import plot
from _learning.runs import Run, RunFailed
from _results import read_csv, write_beside, write_csv
from fastmoco.config import Config
from fastmoco.flags import at_least, positive
from fastmoco.probes.sets import LabelledSets
from fastmoco.train import parse

VARIANTS = EXPERIMENT.variants["small"]


@dataclass(frozen=True)
class Args:
    """Compare settings by the accuracy that they reach in the same time of training steps."""

    train: Path
    """Labelled shard set to train on; its labels are used by the probes alone."""
    val: Path
    """Labelled shard set to evaluate on."""
    set: str = "photos"
    """Name of the sets, part of the results' file names."""
    pace: int = 0
    """Rounds of measuring the time of a step; 0: train with the times measured before."""
    pace_steps: int = 8
    """Measured steps of each kind in a round."""
    minutes: float = 10.0
    """Time of the training steps of a run, in minutes of the machine on which the pace was measured."""
    variants: tuple[str, ...] = ()
    """Variants to measure or to train; default: all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds to train each variant with."""
    jobs: int = 1
    """Concurrent runs, of one thread each."""
    runs: Path = Path("runs/hour")
    """Folder for the run folders."""
    results: Path = Path(__file__).resolve().parent / "results"
    """Folder for the rows, the table and the chart."""

    def path(self, what: str = "") -> Path:
        """File of rows."""
        return self.results / f"hour_{self.set.replace('-', '_')}{what}.csv"


def main(args: Args) -> int:
    """Measure the pace, or train and probe what is missing; returns the exit code: 1 if a run failed."""
    variants = chosen(args)
    sets = LabelledSets(args.train, args.val)
    sizes = {"train_images": len(sets.train_ids), "val_images": len(sets.val_ids), "classes": sets.classes}
    if args.pace:
        measure(args, {name: config_of(args, variant) for name, variant in variants.items()})
        return 0
    seconds = paces_of(args, variants)
    rows = Rows(args, sizes, seconds)
    missing = [run for run in planned(args, variants, seconds) if not rows.has(run)]
    print(f"hour: {len(missing)} runs to make", file=sys.stderr)
    # threads, because each only waits for the processes of its run; a failed run does not end the others
    with ThreadPoolExecutor(args.jobs) as pool:
        failures = [failure for failure in pool.map(rows.make, missing) if failure]
    rows.show()
    if failures:
        print(f"hour: {len(failures)} of {len(missing)} runs failed; {failures[0]}", file=sys.stderr)
    return int(bool(failures))


def chosen(args: Args) -> dict[str, Variant]:
    """The variants; raises BenchmarkError for wrong settings."""
    at_least(0, args, "pace")
    at_least(1, args, "pace_steps", "jobs")
    positive(args, "minutes")
    require()
    if not all(letter.isalnum() or letter in "-_" for letter in args.set):
        raise BenchmarkError(f"--set {args.set!r} is part of file names; use letters, digits, - and _")
    unknown = [name for name in args.variants if name not in VARIANTS]
    if unknown:
        raise BenchmarkError(f"--variants {unknown[0]!r} is not known; use any of {', '.join(VARIANTS)}")
    return {name: VARIANTS[name] for name in args.variants or VARIANTS}


def config_of(args: Args, variant: Variant) -> Config:
    """The settings of a variant, without a length."""
    return parse([*variant.flags, "--shards", str(args.train), "--knn-val", str(args.val)])


def measure(args: Args, configs: dict[str, Config]) -> None:
    """Add --pace rounds of rows of the steps of these settings, each kind of step once in a round."""
    from _learning.pace import measure as measured  # torch loads, for which a wrong flag need not wait

    kinds = {str(work): config for each in configs.values() for work, config, _ in works(each)}
    path = args.path("_pace")
    for _ in range(args.pace):
        rows = [*(read_csv(path) if path.exists() else []), *measured(kinds, args.pace_steps)]
        write_csv(path, rows)
    for work, seconds in paces(rows).items():
        print(f"{work}: {seconds:.3f} s a step")


def paces_of(args: Args, variants: dict[str, Variant]) -> dict[str, float]:
    """Measured seconds of a step by variant; raises BenchmarkError if they have not been measured."""
    path = args.path("_pace")
    if not path.exists():
        raise BenchmarkError(f"no {path}: measure the time of a step first, on a still machine, by --pace 3")
    measured = paces(read_csv(path))
    return {name: seconds_per_step(config_of(args, variant), measured) for name, variant in variants.items()}


def planned(args: Args, variants: dict[str, Variant], seconds: dict[str, float]) -> list[Run]:
    """One run per seed and variant: all variants of the first seed come first."""
    flags = {name: ("--steps", str(steps_of(args.minutes, seconds[name]))) for name in variants}
    linear = (EXPERIMENT.linear or {})["small"]
    return [
        Run(
            name, variant, seed, args.runs / args.set / f"{name}-seed{seed}", args.train, args.val, linear, flags[name],
            threads=1, processes=1,
        )
        # seeds outside, so that an interrupted comparison has all variants with its first seeds
        for seed in args.seeds
        for name, variant in variants.items()
    ]  # fmt: skip


class Rows:
    """The rows of finished runs in a file, which several threads add to.

    Args:
        args: the settings.
        sizes: columns that describe the sets.
        seconds: of a step, by variant.
    """

    def __init__(self, args: Args, sizes: dict[str, int], seconds: dict[str, float]) -> None:
        self._args, self._sizes, self._seconds = args, sizes, seconds
        self._path, self._writing = args.path(), Lock()
        self._rows = sorted(read_csv(self._path), key=_place) if self._path.exists() else []

    def has(self, run: Run) -> bool:
        """Whether a run's rows are there; raises BenchmarkError if they are of other settings."""
        found = [row for row in self._rows if (row["variant"], row["seed"]) == (run.name, run.seed)]
        if found and found[-1]["flags"] != _flags(run):
            raise BenchmarkError(
                f"{self._path} has rows of {run.name}, seed {run.seed}, with {found[-1]['flags']}, not {_flags(run)}; "
                "use another --set or --results, or remove these rows"
            )
        return bool(found)

    def make(self, run: Run) -> str:
        """Make a run and add its rows; returns the reason if it failed, else an empty string."""
        try:
            run.make()
        except RunFailed as reason:
            return str(reason)
        more = {"minutes": self._args.minutes, "step_seconds": self._seconds[run.name], "flags": _flags(run)}
        with self._writing:
            self._rows = sorted([*self._rows, *(row | more | self._sizes for row in run.rows())], key=_place)
            write_csv(self._path, self._rows)
        return ""

    def show(self) -> None:
        """Write the table and the chart, and print the table."""
        if self._rows:
            text = table(self._rows)
            write_beside(self._path, text, plot("hour", EXPERIMENT, "small", self._args.set, self._rows))
            print(text)


def _place(row: Mapping[str, Any]) -> tuple[int, int, int]:
    """In the order of the variants and seeds, whichever run ended first; former variants come last."""
    names = [*EXPERIMENT.variants["small"], row["variant"]]
    return names.index(row["variant"]), row["seed"], row["step"]


def _flags(run: Run) -> str:
    return " ".join([*run.variant.flags, *run.flags])


if __name__ == "__main__":
    script(Args, main)
