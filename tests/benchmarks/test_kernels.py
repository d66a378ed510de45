"""Loss and queue against the original formulation: kernels.py."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.long
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


def test_rounded_keys_have_a_larger_error_than_exact_ones(command, tmp_path):
    shape = ("--n", 8, "--k", 256, "--d", 16)
    command(sys.executable, FOLDER / "queue_rounding.py", *shape, "--json", "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert len(rows) == 8
    for exact, rounded in zip(rows[::2], rows[1::2], strict=True):
        assert (exact["keys"], rounded["keys"]) == ("float32", "bfloat16")
        assert exact["largest_loss_error"] < 1e-5 < rounded["largest_loss_error"] < 2**-9 / rounded["temperature"]
        assert exact["gradient_error"] < 1e-5 < rounded["gradient_error"] < 0.01


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton (torch on Linux)")
def test_every_kernel_has_a_row_for_an_architecture(command, tmp_path):
    command(sys.executable, FOLDER / "kernel_resources.py", "--architectures", 90, "--json", "rows.json", timeout=300)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {row["kernel"].split()[0] for row in rows} == {"infonce", "enqueue", "batch", "colours"}
    assert all(row["spilled_bytes"] == 0 and row["programs"] >= 1 for row in rows)
    wide = next(row for row in rows if row["kernel"] == "infonce walk" and row["d"] == 256)
    assert wide["dtype"] == "bfloat16" and wide["wgmma"] > 0
    assert len((tmp_path / "rows.md").read_text().splitlines()) == len(rows) + 4
