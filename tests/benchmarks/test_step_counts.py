"""Launches and bytes of a training step."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton (torch on Linux)")
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "step_counts.py"


def test_the_fused_batchnorm_has_one_set_of_launches_for_all_groups(command, tmp_path):
    shape = ("--arch", "resnet10", "--batch-size", 8, "--image-size", 64, "--bn-splits", 4)
    command(sys.executable, SCRIPT, *shape, "--json", "rows.json")
    split, fused = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (split["batch_norm_kernel"], fused["batch_norm_kernel"]) == ("torch", "fused")
    assert fused["launches"] < split["launches"] / 3 and fused["gigabytes"] < split["gigabytes"]
    of_split, of_fused = split["launches_of"], fused["launches_of"]
    # 12 layers, in two encoders forward and in one backward, and no ReLU left but that of the heads
    assert of_split["aten::native_batch_norm_backward"] == 2 * 12 * 4
    assert of_fused["batchnorm::normalise_kernel"] == 24 and of_fused["batchnorm::input_gradient_kernel"] == 12
    assert not [name for name in of_fused if name.startswith(("prim::", "profiler::"))]
    assert "aten::native_batch_norm" not in of_fused and of_fused["aten::relu_"] == 2
