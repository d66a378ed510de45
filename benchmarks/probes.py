"""Results of the probes on the same encoders: kNN, the linear probe on random crops, and its fast mode.

    python benchmarks/probes.py --train SHARDS --val SHARDS --checkpoints A.pt B.pt [--untrained ARCH]

Each encoder is probed by the ordinary commands; an interrupted linear probe resumes. The rows, with settings and
provenance, go to RESULTS/probes.csv, and a table of them to RESULTS/probes.md.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from _command import BenchmarkError, script
from _environment import environment
from _results import write_beside, write_csv
from fastmoco.flags import at_least

PROBES = {"knn": (), "linear": (), "linear --fast": ("--fast",)}


@dataclass(frozen=True)
class Args:
    """Compare encoders by kNN and by both modes of the linear probe."""

    train: Path
    """Labelled shard set to train the probes on."""
    val: Path
    """Labelled shard set to evaluate on."""
    checkpoints: tuple[Path, ...] = ()
    """Checkpoints of training runs."""
    untrained: str | None = None
    """Architecture of an untrained encoder to probe as well."""
    image_size: int = 224
    """Side of the untrained encoder's images."""
    lr: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    """Learning rates of the linear probes."""
    epochs: int = 100
    """Epochs of the linear probes."""
    pipeline: Literal["auto", "dali", "torch"] = "auto"
    """Data backend of the probes."""
    threads: int = 1
    """Decoding threads."""
    runs: Path = Path("runs/probes")
    """Folder for the probes' run folders."""
    results: Path = Path(__file__).resolve().parent / "results"
    """Folder for the rows and the table."""


def run(args: Args) -> None:
    """Run every probe on every encoder, print the table, and write rows and table."""
    at_least(1, args, "image_size", "epochs", "threads")
    encoders: dict[str, tuple[str, ...]] = {
        # a checkpoint is RUN/checkpoints/step-N.pt: the run's folder names it
        path.parent.parent.name: ("--checkpoint", str(path))
        for path in args.checkpoints
    }
    if args.untrained:
        more = ("--arch", args.untrained, "--image-size", str(args.image_size))
        encoders["untrained"] = ("--checkpoint", "untrained", *more)
    if not encoders:
        raise BenchmarkError("nothing to probe; give --checkpoints PATH or --untrained ARCH")
    rows = [row for name, flags in encoders.items() for probe in PROBES for row in measured(args, name, flags, probe)]
    rows_path, text = args.results / "probes.csv", table(rows)
    write_csv(rows_path, rows)
    write_beside(rows_path, text)
    print(text)


def measured(args: Args, name: str, flags: tuple[str, ...], probe: str) -> list[dict[str, Any]]:
    """Rows of one encoder and one probe: one per learning rate of a linear probe."""
    folder = args.runs / name / probe.replace(" --", "-")
    folder.mkdir(parents=True, exist_ok=True)
    answer = folder / "result.json"
    if not answer.exists():
        command = [*flags, "--train", args.train, "--val", args.val, "--json", answer]
        command += ["--pipeline", args.pipeline, "--threads", args.threads]
        if probe != "knn":
            command += [*PROBES[probe], "--lr", *args.lr, "--epochs", args.epochs, "--out", folder]
        begun = time.perf_counter()
        module = "fastmoco." + probe.split()[0]
        done = subprocess.run(
            [sys.executable, "-m", module, *map(str, command)], check=False
        )  # not captured: the probes show their progress
        if done.returncode:
            raise BenchmarkError(f"{module} of {name} ended with status {done.returncode}; its message is above")
        seconds = {"seconds": round(time.perf_counter() - begun, 1)}
        # with the machine that ran the probe: the table may be made elsewhere and later
        answer.write_text(json.dumps(json.loads(answer.read_text()) | seconds | {"machine": environment()}, indent=1))
    result = json.loads(answer.read_text())
    common = {
        "encoder": name, "arch": result["arch"], "probe": probe, "epochs": "" if probe == "knn" else args.epochs,
    }  # fmt: skip
    machine = result["machine"]
    provenance = {
        "train": result["train"], "val": result["val"], "classes": result["classes"],
        # results of earlier versions, which read by torch alone, do not name it
        "pipeline": result.get("pipeline", "torch"), "seconds": result["seconds"],
        "cpu": machine["cpu"], "torch": machine["packages"]["torch"], "commit": machine["commit"],
        "date": machine["date"],
    }  # fmt: skip
    return [
        common
        | {"lr": row.get("lr", ""), "k": row.get("k", ""), "temperature": row.get("temperature", "")}
        | {"top1": round(row.get("linear_top1", row.get("knn_top1")), 3)}
        | {"top5": round(row["linear_top5"], 3) if "linear_top5" in row else ""}
        | provenance
        for row in result["results"]
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: top-1 in percent by probe and encoder, then the difference between the fast and the full mode."""
    encoders = list(dict.fromkeys(row["encoder"] for row in rows))
    ways = list(dict.fromkeys((row["probe"], row["lr"]) for row in rows))
    found = {(row["encoder"], row["probe"], row["lr"]): row["top1"] for row in rows}
    lines = [
        "| probe | lr | " + " | ".join(encoders) + " |",
        "| --- | ---: |" + " ---: |" * len(encoders),
    ]
    for probe, rate in ways:
        cells = [f"{found[encoder, probe, rate]:.1f}" for encoder in encoders]
        lines.append(f"| {probe} | {rate} | {' | '.join(cells)} |")
    gaps = [
        found[encoder, "linear --fast", rate] - found[encoder, "linear", rate]
        for encoder in encoders
        for probe, rate in ways
        if probe == "linear"
    ]
    seconds = {probe: statistics.mean(row["seconds"] for row in rows if row["probe"] == probe) for probe in PROBES}
    return (
        "\n".join(lines)
        + f"\n\nFast less full, in points, over encoders and learning rates: mean {statistics.mean(gaps):+.1f}, "
        + f"from {min(gaps):+.1f} to {max(gaps):+.1f}. Mean seconds a probe: "
        + ", ".join(f"{probe} {value:.0f}" for probe, value in seconds.items())
        + ".\n"
    )


if __name__ == "__main__":
    script(Args, run)
