"""Loss and queue against the original formulation: kernels.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def test_memory_is_flat_in_the_length_of_the_queue(command, tmp_path):
    shapes = ("--shapes", 64, 4096, 32, 64, 131_072, 32)
    command(sys.executable, FOLDER / "kernels.py", "--device", "cpu", *shapes, "--repeats", 1, "--json", "kernels.json")
    result = json.loads((tmp_path / "kernels.json").read_text())
    rows = {(row["k"], row["way"]): row for row in result["rows"]}
    assert len(rows) == 6 and {"date", "commit", "cpu", "packages"} <= set(result["environment"])
    logits_mib = 64 * 131_072 * 4 / 2**20
    assert rows[131_072, "original"]["peak_mib"] > 2 * logits_mib
    for way in ("fastmoco", "fastmoco, queue in bfloat16"):
        assert abs(rows[131_072, way]["peak_mib"] - rows[4096, way]["peak_mib"]) < logits_mib / 8
    for row in rows.values():
        assert 0 < row["lowest_ms"] <= row["median_ms"] <= row["highest_ms"]
        assert row["loss_error"] < 1e-4 and row["by"] == "torch"
    table = (tmp_path / "kernels.md").read_text()
    assert "| 64 | 131,072 | 32 | original | torch |" in table


def test_a_queue_that_the_original_cannot_have_is_refused(command):
    done = command(sys.executable, FOLDER / "kernels.py", "--shapes", 3, 7, 2, check=False)
    assert done.returncode == 2 and "--shapes 3 7 2: K must be a multiple of N" in done.stderr
