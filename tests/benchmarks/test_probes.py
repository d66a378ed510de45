from __future__ import annotations

import csv
import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "probes.py"
RATES = (1.0, 30.0)
MACHINE = {"cpu": "a cpu", "packages": {"torch": "2"}, "commit": "abc", "date": "today"}


def result(folder, rows, seconds):
    """A probe's result as the script stores it."""
    content = {"arch": "resnet18", "train": 96, "val": 24, "classes": 4, "seconds": seconds, "machine": MACHINE}
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(content | {"results": rows}))


def linear(*top1):
    return [{"lr": rate, "linear_top1": a, "linear_top5": 99.0} for rate, a in zip(RATES, top1, strict=True)]


@pytest.fixture
def tables(tmp_path, monkeypatch, capsys):
    for name, full, fast in (("run", (40.0, 50.0), (38.0, 49.0)), ("untrained", (10.0, 20.0), (10.0, 26.0))):
        result(tmp_path / "runs" / name / "knn", [{"k": 20, "temperature": 0.07, "knn_top1": 33.3333}], 1.0)
        result(tmp_path / "runs" / name / "linear", linear(*full), 100.0)
        result(tmp_path / "runs" / name / "linear-fast", linear(*fast), 10.0)
    where = ["--runs", tmp_path / "runs", "--results", tmp_path / "results", "--train", "a", "--val", "b"]
    which = ["--checkpoints", "some/run/checkpoints/step-1.pt", "--untrained", "resnet18", "--lr", *RATES]
    monkeypatch.setattr(sys, "argv", [str(part) for part in (SCRIPT, *where, *which)])
    monkeypatch.syspath_prepend(SCRIPT.parent)
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert left.value.code == 0
    return tmp_path / "results", capsys.readouterr().out


def test_rows_and_table_report_the_results_of_the_probes(tables):
    results, shown = tables
    with (results / "probes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (1 + 2 + 2)
    assert [(row["probe"], row["lr"], row["top1"]) for row in rows[:3]] == [
        ("knn", "", "33.333"), ("linear", "1.0", "40.0"), ("linear", "30.0", "50.0"),
    ]  # fmt: skip
    assert all(row["commit"] == "abc" and row["cpu"] == "a cpu" for row in rows)
    table = (results / "probes.md").read_text()
    assert "| linear --fast | 30.0 | 49.0 | 26.0 |" in table and table.strip() in shown
    assert "Fast less full, in points, over encoders and learning rates: mean +0.8, from -2.0 to +6.0." in table
    assert "knn 1, linear 100, linear --fast 10" in table
