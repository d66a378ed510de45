"""The colour kernel: under Triton's interpreter and compiled for GPUs on any machine, run where there is a GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

CHECKS = Path(__file__).parent / "scripts" / "colours_triton_checks.py"

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton (torch on Linux)")


def test_the_kernel_under_the_interpreter(command):
    command(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", CHECKS, env={"TRITON_INTERPRET": "1"})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_kernel_on_the_gpu(command):
    command(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", CHECKS)


@pytest.mark.parametrize(("capability", "solarize"), [(80, False), (90, False), (100, False), (90, True)])
def test_four_programs_fit_into_a_multiprocessor(monkeypatch, tmp_path, capability, solarize):
    """All 512 programs of a batch of 256 then run at once on 132 multiprocessors; nothing is spilled."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    found = importlib.import_module("_kernels").colours(torch.bfloat16, capability, tmp_path, solarize)
    assert found.programs >= 4
    assert found.spilled == 0
    assert found.shared <= 1024
