"""The colour kernel: under Triton's interpreter and compiled for GPUs on any machine, run where there is a GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from tests.support.triton import by_name, compiled

CHECKS = Path(__file__).parent / "scripts" / "colours_triton_checks.py"

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton (torch on Linux)")


def test_the_kernel_under_the_interpreter(command):
    command(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", CHECKS, env={"TRITON_INTERPRET": "1"})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_kernel_on_the_gpu(command):
    command(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", CHECKS)


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_four_programs_fit_into_a_multiprocessor(tmp_path, capability):
    """All 512 programs of a batch of 256 then run at once on 132 multiprocessors; nothing is spilled."""
    from pipelines.kernels.colours_triton import OPTIONS, colours_kernel

    types = ["*u8", "*u8", "*bf16", "*bf16", "*fp32", *["fp32"] * 6, "i32"]
    constants, warps = {"BLOCK": OPTIONS["BLOCK"]}, OPTIONS["num_warps"]
    named = by_name(colours_kernel, types, constants)
    divisible = [argument for argument, kind in named.items() if kind != "fp32"]
    found = compiled(colours_kernel, named, constants, capability, tmp_path, divisible=divisible, num_warps=warps)
    assert 4 * found.registers * 32 * warps <= 65_536
    assert found.spilled == 0
    assert found.kernel.metadata.shared <= 1024
