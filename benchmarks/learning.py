"""The papers' experiments: train all variants with several seeds, probe them, and compare with the papers' figures.

    python benchmarks/learning.py momentum --train SHARDS --val SHARDS --set photocrops [--seeds 0 1 2] [--jobs 2]

Unknown flags are passed to every training and override the variant's. Trains by the ordinary commands: an interrupted
run resumes, and a finished one is not repeated. The results of all probes, with settings and provenance, go to
RESULTS/NAME_SET.csv, which keeps its rows of other variants and seeds, a table of them to RESULTS/NAME_SET.md, and a
chart to RESULTS/NAME_SET.svg.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _charts import require
from _command import BenchmarkError
from _learning.experiments import EXPERIMENTS, Scale, Variant
from _learning.plot import plot
from _learning.runs import Run, RunFailed
from _learning.table import table
from _results import read_csv, write_beside, write_csv
from fastmoco.commandline import parser_of
from fastmoco.flags import at_least
from fastmoco.probes.sets import LabelledSets
from shards.command import command


@dataclass(frozen=True)
class Args:
    """Train the variants of an experiment with several seeds and compare their accuracy."""

    train: Path
    """Labelled shard set to train on; its labels are used by the probes and by supervised variants."""
    val: Path
    """Labelled shard set to evaluate on."""
    images: Path | None = None
    """The images of --train as files in class folders, for the original's loader in data-paths."""
    scale: Scale = "small"
    """small: minutes per run on one CPU core; imagenet: the papers' settings."""
    set: str = ""
    """Name of the sets, part of the results' file names."""
    variants: tuple[str, ...] = ()
    """Variants to train; default: all of the experiment."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds to train each variant with."""
    jobs: int = 1
    """Concurrent runs; they share the cores."""
    processes: int = 1
    """Ranks per MoCo training, for example one per GPU."""
    runs: Path = Path("runs/learning")
    """Folder for the run folders."""
    results: Path = Path(__file__).resolve().parent / "results"
    """Folder for the rows, the table and the chart."""


# not `script`: flags that are not of this script go to the training
def main() -> None:
    """Entry of the script."""
    command("learning", lambda: run(*parse(sys.argv[1:])))


def parse(arguments: Sequence[str]) -> tuple[str, Args, list[str]]:
    """The experiment, the settings, and the unknown flags, which are for the training."""
    parser = parser_of(Args, f"python {sys.argv[0]}")
    parser.add_argument("name", choices=EXPERIMENTS, help="the experiment")
    parser.usage = f"{parser.prog} EXPERIMENT --train TRAIN --val VAL [flags]"
    known, flags = parser.parse_known_args(arguments)
    values = vars(known)
    return values.pop("name"), Args(**values), flags


def run(name: str, args: Args, flags: Sequence[str]) -> int:
    """Train and probe where that is not done yet, write the results, and return the exit code: 1 if a run failed."""
    require()
    variants, sizes = chosen(name, args), sizes_of(args)
    wanted = runs(name, args, variants, flags)
    text, ended, failures = "", set(), []
    # threads, because each only waits for the processes of its run; a failed run does not end the others
    with ThreadPoolExecutor(args.jobs) as pool:
        attempts = {pool.submit(attempt, run): run for run in wanted}
        for done in as_completed(attempts):
            if done.result():
                failures.append(done.result())
                continue
            ended.add(attempts[done].folder)
            # after each run, so that its results can be looked at and kept while the others go on
            text = write(name, args, [row | sizes for run in wanted if run.folder in ended for row in run.rows()])
    if text:
        print(text)
    if failures:
        print(f"learning: {len(failures)} of {len(wanted)} runs failed; {failures[0]}", file=sys.stderr)
    return int(bool(failures))


def chosen(name: str, args: Args) -> dict[str, Variant]:
    """The variants to train; raises BenchmarkError for wrong settings."""
    at_least(1, args, "jobs", "processes")
    if not all(letter.isalnum() or letter in "-_" for letter in args.set):
        raise BenchmarkError(f"--set {args.set!r} is part of file names; use letters, digits, - and _")
    if args.scale not in EXPERIMENTS[name].variants:
        raise BenchmarkError(f"{name} has no --scale {args.scale}; use --scale small")
    known = EXPERIMENTS[name].variants[args.scale]
    unknown = [variant for variant in args.variants if variant not in known]
    if unknown:
        raise BenchmarkError(f"--variants {unknown[0]!r} is not known; use any of {', '.join(known)}")
    found = {variant: known[variant] for variant in args.variants or known}
    if any(variant.loader == "original" for variant in found.values()):
        if args.images is None or not args.images.is_dir():
            raise BenchmarkError(
                f"--images is {args.images}: the original's loader needs the images of --train as files; "
                "give the folder that --train was packed from"
            )
        if args.processes != 1:
            raise BenchmarkError(f"--processes is {args.processes}: the original's loader runs in one; leave it out")
    return found


def sizes_of(args: Args) -> dict[str, int]:
    """Labelled images and classes of the sets; raises ProbeError or ShardSetError."""
    sets = LabelledSets(args.train, args.val)
    return {"train_images": len(sets.train_ids), "val_images": len(sets.val_ids), "classes": sets.classes}


def runs(name: str, args: Args, variants: dict[str, Variant], flags: Sequence[str]) -> list[Run]:
    """One run per seed and variant: all variants of the first seed come first."""
    # the cores are divided, because every process would otherwise start a thread per core
    threads = max(1, len(os.sched_getaffinity(0)) // args.jobs)
    folder = args.runs / (f"{name}-{args.set}" if args.set else name)
    experiment = EXPERIMENTS[name]
    linear = experiment.linear[args.scale] if experiment.linear else {}
    return [
        Run(
            label, variant, seed, folder / f"{label}-seed{seed}", args.train, args.val, linear, flags, threads,
            args.processes, args.images, experiment.compared,
        )
        # seeds outside, so that an interrupted experiment can compare all variants by its first seeds
        for seed in args.seeds
        for label, variant in variants.items()
    ]  # fmt: skip


def attempt(run: Run) -> str:
    """Make a run; returns the reason if it failed, else an empty string."""
    try:
        run.make()
    except RunFailed as reason:
        return str(reason)
    return ""


def write(name: str, args: Args, rows: Sequence[dict[str, Any]]) -> str:
    """Write rows, table and chart, with the rows there of other variants and seeds; returns the table."""
    experiment, stem = EXPERIMENTS[name], "_".join(filter(None, (name, args.set))).replace("-", "_")
    path, made = args.results / f"{stem}.csv", {(row["variant"], row["seed"]) for row in rows}
    before = read_csv(path) if path.exists() else []
    rows = [*(row for row in before if (row["variant"], row["seed"]) not in made), *rows]
    if any(set(row) != set(rows[-1]) for row in before):
        raise BenchmarkError(f"{path} has other columns, of another version; move it away and run this again")
    text = table(name, experiment, args.scale, rows)
    write_csv(path, rows)
    write_beside(path, text, plot(name, experiment, args.scale, args.set, rows))
    return text


if __name__ == "__main__":
    main()
