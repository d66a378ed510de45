"""The colour kernel: under Triton's interpreter and compiled for GPUs on any machine, run where there is a GPU."""

from __future__ import annotations

import importlib.util
import re
import subprocess
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


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_four_programs_fit_into_a_multiprocessor(tmp_path, capability):
    """All 512 programs of a batch of 256 then run at once on 132 multiprocessors; nothing is spilled."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pipelines.kernels.colours_triton import OPTIONS, colours_kernel

    types = ["*u8", "*u8", "*bf16", "*bf16", "*fp32", *["fp32"] * 6, "i32"]
    signature = dict(zip(colours_kernel.arg_names, [*types, "constexpr"], strict=True))
    aligned = {(place,): [["tt.divisibility", 16]] for place, kind in enumerate(types) if kind != "fp32"}
    source = ASTSource(colours_kernel, signature, {"BLOCK": OPTIONS["BLOCK"]}, aligned)
    warps = OPTIONS["num_warps"]
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    (tmp_path / "kernel.ptx").write_text(kernel.asm["ptx"])
    nvidia = triton.knobs.nvidia
    ptxas = nvidia.ptxas_blackwell if capability >= 100 else nvidia.ptxas
    line = [ptxas.path, "-v", f"--gpu-name=sm_{capability}{'a' * (capability >= 90)}", "kernel.ptx", "-o", "cubin"]
    result = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    report = result.stderr + result.stdout
    assert result.returncode == 0, report
    registers, spilled = re.search(r"Used (\d+) registers", report), re.search(r"(\d+) bytes spill stores", report)
    assert registers and 4 * int(registers[1]) * 32 * warps <= 65_536, report
    assert spilled and int(spilled[1]) == 0, report
    assert kernel.metadata.shared <= 1024
