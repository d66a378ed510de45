"""The Triton kernels: computed by its interpreter on any machine, compiled for GPUs on any machine, run on a GPU."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from tests.support.triton import by_name, compiled

CHECKS = Path(__file__).parent / "scripts" / "triton_checks.py"
SHARED_BYTES = 99 * 1024
"""Shared memory per program on the smallest of the Ampere, Ada and Hopper GPUs."""

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton (torch on Linux)")


def test_kernels_under_the_interpreter(command):
    command(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", CHECKS, env={"TRITON_INTERPRET": "1"})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_on_the_gpu(command):
    command(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", CHECKS)


def compiled_in_order(kernel, types, constants, capability, folder, **options):
    """`compiled`, with the types of the arguments in their order. Tensors and sizes are multiples of 16."""
    named = by_name(kernel, types, constants)
    divisible = [argument for argument, kind in named.items() if kind not in ("fp32", "i1")]
    return compiled(kernel, named, constants, capability, folder, divisible=divisible, **options)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [128, 256])
def test_the_walk_fits_into_a_gpu(tmp_path, stored, dim, capability):
    from fastmoco.kernels import infonce_triton
    from fastmoco.kernels.infonce_triton import tl, walk_kernel

    options = infonce_triton.tiles(256, dim, stored)
    constants = {name: value for name, value in options.items() if name.isupper()}
    constants |= {"PRECISION": "tf32x3", "HALF": tl.bfloat16}
    negatives = "*fp32" if stored == torch.float32 else "*bf16"
    types = ["*fp32", negatives, "*fp32", "*fp32", "*fp32", "fp32", "i32", "i32", "i32", "i32"]
    found = compiled_in_order(
        walk_kernel, types, constants, capability, tmp_path, num_warps=options["num_warps"], num_stages=2
    )
    assert found.kernel.metadata.shared <= SHARED_BYTES
    assert found.spilled <= 256  # a few registers may spill; tiles that are too large spill kilobytes
    assert "mma" in found.kernel.asm["ptx"]  # tensor cores


def test_the_rings_ticket_is_taken_after_every_thread_has_read_the_pointer(tmp_path):
    from fastmoco.kernels.enqueue_triton import write_kernel

    types = ["*bf16", "*i64", "*i64", "*i32", "*fp32", "i32", "i32", "i32", "i32"]
    kernel = compiled_in_order(write_kernel, types, {"ROWS": 32, "BLOCK_D": 128}, 80, tmp_path).kernel
    found = re.findall(r"ld\.global\.b64|st\.global\.v4\.b32|st\.global\.b64|bar\.sync|atom\.\S+", kernel.asm["ptx"])
    ticket = next(place for place, name in enumerate(found) if name.startswith("atom"))
    assert found[0] == "ld.global.b64"  # the pointer is read,
    assert "st.global.v4.b32" in found[:ticket]  # keys are written,
    assert found[ticket - 1] == "bar.sync"  # all threads wait,
    assert found[ticket].startswith("atom.global.gpu.acq_rel")  # one takes the ticket,
    assert "st.global.b64" in found[ticket:] and "st.global.b64" not in found[:ticket]  # and only then it moves


def test_the_combination_compiles(tmp_path):
    from fastmoco.kernels.infonce_triton import combine_kernel

    types = [*["*fp32"] * 6, "*i1", "*fp32", "fp32", "fp32", "i32", "i32", "i32"]
    kernel = compiled_in_order(combine_kernel, types, {"BLOCK_S": 16, "BLOCK_D": 128}, 80, tmp_path).kernel
    assert kernel.metadata.shared <= SHARED_BYTES
