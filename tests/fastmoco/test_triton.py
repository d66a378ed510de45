"""The Triton kernels: computed by its interpreter on any machine, compiled for GPUs on any machine, run on a GPU."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

CHECKS = Path(__file__).parent / "scripts" / "triton_checks.py"
FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton (torch on Linux)")


def test_kernels_under_the_interpreter(command):
    command(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", CHECKS, env={"TRITON_INTERPRET": "1"})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_on_the_gpu(command):
    command(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", CHECKS)


@pytest.fixture
def kernels(monkeypatch):
    """The kernels as the product launches them, compiled for any GPU."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("_kernels")


# the most registers and KiB of shared memory, the fewest programs of a multiprocessor, the tensor cores' instruction
BOUNDS = {
    (80, torch.float32, 64): (168, 32, 3, "mma"),
    (80, torch.float32, 128): (240, 64, 2, "mma"),
    (80, torch.bfloat16, 64): (240, 32, 2, "mma"),
    (80, torch.bfloat16, 128): (240, 64, 2, "mma"),
    (80, torch.bfloat16, 256): (240, 64, 2, "mma"),
    (86, torch.float32, 128): (240, 48, 2, "mma"),
    (86, torch.bfloat16, 128): (240, 48, 2, "mma"),
    (86, torch.bfloat16, 256): (240, 48, 2, "mma"),
    (90, torch.float32, 64): (168, 64, 3, "wgmma"),
    (90, torch.float32, 128): (248, 96, 2, "wgmma"),
    (90, torch.bfloat16, 64): (168, 64, 3, "wgmma"),
    (90, torch.bfloat16, 128): (224, 96, 2, "wgmma"),
    (90, torch.bfloat16, 256): (255, 128, 1, "wgmma"),
    (100, torch.float32, 64): (168, 32, 3, "mma"),
    (100, torch.float32, 128): (240, 64, 2, "mma"),
    (100, torch.bfloat16, 64): (168, 48, 2, "tcgen05"),
    (100, torch.bfloat16, 128): (200, 80, 2, "tcgen05"),
    (100, torch.bfloat16, 256): (255, 80, 2, "mma"),
    (120, torch.float32, 128): (240, 48, 2, "mma"),
    (120, torch.bfloat16, 128): (240, 48, 2, "mma"),
}


@pytest.mark.parametrize(("capability", "stored", "dim"), BOUNDS)
def test_the_walk_fits_into_a_gpu(kernels, tmp_path, capability, stored, dim):
    registers, shared_kib, programs, instruction = BOUNDS[capability, stored, dim]
    found = kernels.walk(stored, dim, capability, tmp_path)
    assert found.spilled == 0
    assert found.registers <= registers
    assert found.shared <= shared_kib * 1024
    assert found.programs >= programs
    products = {name: found.count(name) for name in ("mma", "wgmma", "tcgen05")}
    assert [name for name, count in products.items() if count] == [instruction]
    assert found.count("async_copies") > 0  # keys are copied ahead


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_keys_in_two_parts_fit_as_well(kernels, tmp_path, capability):
    torch.set_float32_matmul_precision("high")
    try:
        found = kernels.walk(torch.float32, 128, capability, tmp_path)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert found.spilled == 0 and found.programs >= 2


def test_the_rings_ticket_is_taken_after_every_thread_has_read_the_pointer(kernels, tmp_path):
    kernel = kernels.enqueue(torch.bfloat16, 128, 80, tmp_path).kernel
    found = re.findall(r"ld\.global\.b64|st\.global\.v4\.b32|st\.global\.b64|bar\.sync|atom\.\S+", kernel.asm["ptx"])
    ticket = next(place for place, name in enumerate(found) if name.startswith("atom"))
    assert found[0] == "ld.global.b64"  # the pointer is read,
    assert "st.global.v4.b32" in found[:ticket]  # keys are written,
    assert found[ticket - 1] == "bar.sync"  # all threads wait,
    assert found[ticket].startswith("atom.global.gpu.acq_rel")  # one takes the ticket,
    assert "st.global.b64" in found[ticket:] and "st.global.b64" not in found[:ticket]  # and only then it moves


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_combination_fits_into_a_gpu(kernels, tmp_path, capability):
    found = kernels.combine(256, capability, tmp_path)
    assert found.spilled == 0
    assert found.programs >= 7
