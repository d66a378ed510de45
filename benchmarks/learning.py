"""What settings do to learning: each variant of an experiment, trained with several seeds and probed by kNN.

    python benchmarks/learning.py small-photos --train SHARDS --val SHARDS [--variants papers] [--seeds 0 1 2]

Flags that it does not know go to every run, and override the variant's.
Trains every variant with every seed by the ordinary command (a run that was cut off goes on where it was, a
finished one is not repeated), then writes all kNN probes with their settings and provenance to
RESULTS/NAME.csv and the table made of them to RESULTS/NAME.md.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from _environment import environment

from fastmoco.config import Config

SMALL_PHOTOS = (
    *("--recipe", "moco-v2", "--arch", "resnet18", "--image-size", "64", "--batch-size", "128"),
    *("--queue-size", "2048", "--momentum-key", "0.99", "--temperature", "0.1", "--lr", "0.06"),
    *("--weight-decay", "5e-4", "--epochs", "30", "--knn-every", "5"),
)
"""Settings for some thousand photographs on two CPU cores: half an hour to an hour a run."""
EXPERIMENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "small-photos": {
        "papers": SMALL_PHOTOS,
        "bn-splits-8": (*SMALL_PHOTOS, "--bn-splits", "8"),
        "warmup": (*SMALL_PHOTOS, "--warmup", "0.1"),
        "zero-init": (*SMALL_PHOTOS, "--zero-init-residual"),
    },
}
"""Flags of each variant, by experiment and variant."""
SETTINGS = (
    *("arch", "head", "augmentation", "image_size", "batch_size", "queue_size", "momentum_key", "temperature", "lr"),
    *("weight_decay", "schedule", "warmup", "zero_init_residual", "bn_splits", "knn_k", "knn_temperature"),
)
"""Settings that a row names."""


@dataclass(frozen=True)
class Args:
    """Train the variants of an experiment with several seeds and compare their kNN accuracy."""

    name: tyro.conf.Positional[Literal["small-photos"]]
    """Which experiment."""
    train: Path
    """Labelled shard set to train on; its labels are used by the probe alone."""
    val: Path
    """Labelled shard set that the probe classifies."""
    variants: tuple[str, ...] = ()
    """Variants to train; default: all of the experiment."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each variant."""
    jobs: int = 1
    """Runs at the same time; the cores are shared among them."""
    runs: Path = Path("runs/learning")
    """Folder of the run folders."""
    results: Path = Path(__file__).resolve().parent / "results"
    """Folder for the rows and the table."""


def main() -> None:
    """Entry of the script."""
    args, flags = tyro.cli(Args, prog="learning.py", return_unknown_args=True)
    known = EXPERIMENTS[args.name]
    unknown = [name for name in args.variants if name not in known]
    if unknown or args.jobs < 1:
        problem = (
            f"no variant {unknown[0]!r}; known: {', '.join(known)}" if unknown else f"--jobs {args.jobs}: use 1 or more"
        )
        raise SystemExit(f"learning: {problem}")
    wanted = [(variant, seed) for seed in args.seeds for variant in args.variants or known]
    with ThreadPoolExecutor(args.jobs) as pool:
        failed = [folder for folder in pool.map(lambda run: train(args, run[0], run[1], flags), wanted) if folder]
    rows = [row for variant, seed in wanted for row in probes(args, variant, seed)]
    if rows:
        write(args, rows)
    if failed:
        log = failed[0] / "log.txt"
        last = "\n".join(log.read_text(encoding="utf-8").splitlines()[-8:])
        raise SystemExit(f"learning: {len(failed)} of {len(wanted)} runs failed; the end of {log}:\n{last}")


def folder_of(args: Args, variant: str, seed: int) -> Path:
    """Run folder of a variant and a seed."""
    return args.runs / args.name / f"{variant}-seed{seed}"


def train(args: Args, variant: str, seed: int, flags: Sequence[str]) -> Path | None:
    """Train one variant with one seed; its folder where that failed."""
    folder = folder_of(args, variant, seed)
    folder.mkdir(parents=True, exist_ok=True)
    threads = max(1, len(os.sched_getaffinity(0)) // args.jobs)
    note = folder / "environment.json"
    if not note.exists():
        note.write_text(json.dumps(environment() | {"torch_threads": threads}, indent=1) + "\n", encoding="utf-8")
    where = ("--shards", args.train, "--knn-val", args.val, "--out", folder, "--threads", threads, "--seed", seed)
    command = [sys.executable, "-m", "fastmoco.train", *EXPERIMENTS[args.name][variant], *where, *flags]
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        done = subprocess.run(
            [str(part) for part in command],
            stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=False,
        )  # fmt: skip
    return folder if done.returncode else None


def probes(args: Args, variant: str, seed: int) -> list[dict[str, Any]]:
    """A row for each kNN probe of a run; none where it has not come so far."""
    folder = folder_of(args, variant, seed)
    if not (folder / "metrics.jsonl").exists():
        return []
    settings, machine = (json.loads((folder / name).read_text()) for name in ("config.json", "environment.json"))
    settings = Config.from_dict(settings).to_dict()
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    common = {name: settings[name] for name in SETTINGS} | {
        "cpu": machine["cpu"], "threads": machine["torch_threads"], "torch": machine["packages"]["torch"],
        "commit": machine["commit"], "date": machine["date"],
    }  # fmt: skip
    return [
        {
            "variant": variant,
            "seed": seed,
            "epoch": line["epoch"],
            "step": line["step"],
            "knn_top1": round(line["knn_top1"], 3),
        }
        | common
        for line in lines
        if "knn_top1" in line
    ]


def write(args: Args, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows and table, and show the table."""
    args.results.mkdir(parents=True, exist_ok=True)
    stem = args.results / args.name.replace("-", "_")
    with stem.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    text = table(rows)
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: kNN top-1 in per cent by variant and epoch, mean over the seeds, and the last epoch's seeds."""
    cells: dict[tuple[str, float], list[float]] = defaultdict(list)
    for row in rows:
        cells[row["variant"], row["epoch"]].append(row["knn_top1"])
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    epochs = sorted({row["epoch"] for row in rows})
    lines = [
        "| variant | " + " | ".join(f"epoch {epoch:g}" for epoch in epochs) + " | each seed at the end |",
        "| --- |" + " ---: |" * len(epochs) + " --- |",
    ]
    for variant in variants:
        means = [f"{statistics.mean(found):.1f}" if (found := cells[variant, epoch]) else "" for epoch in epochs]
        last = ", ".join(f"{value:.1f}" for value in cells[variant, epochs[-1]])
        lines.append(f"| {variant} | {' | '.join(means)} | {last} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
