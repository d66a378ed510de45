"""The small benchmarks of the data path."""

from __future__ import annotations

import json
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def test_draws_are_timed(command, tmp_path):
    command(sys.executable, FOLDER / "draws.py", "--repeats", "20", "--batch-size", "16", "--json", "rows.json")
    result = json.loads((tmp_path / "rows.json").read_text())
    assert [row["recipe"] for row in result["rows"]] == ["moco_v1", "moco_v2"]
    assert all(0 < row["median_ms"] <= row["ninth_decile_ms"] for row in result["rows"])
    assert {"date", "commit", "cpu", "packages"} <= set(result["environment"])
