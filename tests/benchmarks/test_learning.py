from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "learning.py"
SMALL = (
    *("--arch", "resnet10", "--image-size", "32", "--batch-size", "16", "--queue-size", "64", "--augmentation", "v1"),
    *("--epochs", "1", "--knn-every", "1"),
)


@pytest.mark.slow
def test_variants_are_trained_probed_and_tabled(command, shard_sets, tmp_path):
    sets = ("--train", shard_sets / "train", "--val", shard_sets / "val")
    where = ("--runs", tmp_path / "runs", "--results", tmp_path / "results")
    call = (
        sys.executable,
        SCRIPT,
        "small-photos",
        *sets,
        "--variants",
        "papers",
        "zero-init",
        "--seeds",
        "3",
        *where,
        *SMALL,
    )
    shown = command(*call).stdout
    with (tmp_path / "results/small_photos.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["epoch"], row["zero_init_residual"]) for row in rows] == [
        *(("papers", "0.0", "False"), ("papers", "1.0", "False")),
        *(("zero-init", "0.0", "True"), ("zero-init", "1.0", "True")),
    ]
    assert all(row["seed"] == "3" and row["arch"] == "resnet10" and row["torch"] and row["cpu"] for row in rows)
    metrics = (tmp_path / "runs/small-photos/zero-init-seed3/metrics.jsonl").read_text().splitlines()
    probe = json.loads(metrics[-1])["knn_top1"]
    assert float(rows[-1]["knn_top1"]) == pytest.approx(probe, abs=5e-4)
    table = (tmp_path / "results/small_photos.md").read_text()
    assert f"{probe:.1f} |" in table.splitlines()[-1] and table.strip() in shown
    command(*call)  # finished runs are not repeated
    assert (tmp_path / "runs/small-photos/zero-init-seed3/metrics.jsonl").read_text().splitlines() == metrics


def test_what_is_wrong_is_said(command, shard_sets, tmp_path):
    sets = ("--train", shard_sets / "train", "--val", shard_sets / "val", "--runs", tmp_path, "--results", tmp_path)
    wrong = command(sys.executable, SCRIPT, "small-photos", *sets, "--variants", "other", check=False)
    assert wrong.returncode == 1 and "no variant 'other'; known: papers, bn-splits-8" in wrong.stderr
    failed = command(
        sys.executable,
        SCRIPT,
        "small-photos",
        *sets,
        "--variants",
        "papers",
        "--seeds",
        "0",
        "--arch",
        "resnet9",
        check=False,
    )
    assert failed.returncode == 1 and "1 of 1 runs failed" in failed.stderr and "resnet9" in failed.stderr
    assert not list(tmp_path.glob("*.csv"))
