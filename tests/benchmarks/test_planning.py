"""The planning benchmark at a small size, and the figures that docs/scaling.md shows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_planner_and_worker_are_measured(command, tmp_path):
    script = REPOSITORY / "benchmarks" / "planning.py"
    command(sys.executable, script, "--records", "300", "5000", "--json", "rows.json")
    few, many = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (few["records"], many["records"]) == (300, 5000)
    assert many["plan_bytes"] * 3 == few["plan_bytes"] * 50
    assert min(few["planner_rss_mb"], few["worker_rss_mb"], few["planner_seconds"]) > 0


def test_planning_from_tars_is_measured_with_one_process_and_with_all(command, tmp_path):
    script = REPOSITORY / "benchmarks" / "planning.py"
    command(sys.executable, script, "--tars", "1", "--json", "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {(row["tars"], row["images"]) for row in rows} == {(1, 6000)} and rows[0]["workers"] == 1
    assert all(abs(row["us_per_image"] - 1e6 * row["seconds"] / 6000) < 0.2 and row["seconds"] > 0 for row in rows)


def test_the_documents_table_is_that_of_the_results():
    rows = json.loads((REPOSITORY / "benchmarks" / "results" / "planning.json").read_text())["rows"]
    shown = (REPOSITORY / "docs" / "scaling.md").read_text()
    for row in rows:
        records, seconds = row["records"], row["planner_seconds"]
        figures = f"{seconds:.1f} | {seconds / records * 1e6:.1f} | {row['planner_rss_mb']:.0f} MB"
        assert (
            f"| {records:,} | {row['plan_bytes'] / 1e6:.1f} MB | {figures} | {row['worker_rss_mb']:.0f} MB |" in shown
        )
