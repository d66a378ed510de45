"""The grouped BatchNorm: in torch, by Triton's interpreter, compiled for GPUs that need not be there, on a GPU."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from fastmoco.kernels import reference
from fastmoco.kernels.batchnorm import Running, batch_norm, implementation

SCRIPTS = Path(__file__).parent / "scripts"
CHECKS = SCRIPTS / "batchnorm_checks.py"
MODES = ("plain", "relu", "add")

needs_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton (torch on Linux)")


def images(*shape, seed, dtype=torch.float64):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return values.contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_output_statistics_and_gradients_equal_the_reference(groups, mode):
    x = images(8, 5, 3, 7, seed=0)
    weight, bias = (images(5, 1, 1, 1, seed=seed).detach().flatten().requires_grad_() for seed in (1, 2))
    residual = images(*x.shape, seed=3) if mode == "add" else None
    leaves = [leaf for leaf in (x, weight, bias, residual) if leaf is not None]
    options = {"relu": mode == "relu", "groups": groups, "epsilon": 0.1}
    expected, mean, variance = reference.batch_norm(x, weight, bias, residual, **options)
    start = torch.full((2, 5), 3.0, dtype=torch.float64)
    running = Running(start[0].clone(), start[1].clone(), torch.tensor(4))
    out = batch_norm(x, weight, bias, residual, **options, momentum=0.3, running=running)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(running.mean, 0.7 * start[0] + 0.3 * mean.detach())
    torch.testing.assert_close(running.var, 0.7 * start[1] + 0.3 * variance.detach())
    assert running.batches.item() == 5
    slope = images(*x.shape, seed=4).detach()
    wanted = torch.autograd.grad(expected, leaves, slope)
    for ours, theirs in zip(torch.autograd.grad(out, leaves, slope), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_statistics_in_float32(dtype):
    x = (images(4, 3, 5, 5, seed=0).detach() + 100).to(dtype)
    ones = torch.ones(3)
    running = Running(torch.zeros(3), torch.ones(3))
    out = batch_norm(x, ones, ones, running=running)
    assert out.dtype == dtype and running.mean.dtype == torch.float32
    expected, mean, _ = reference.batch_norm(x.double(), ones.double(), ones.double())
    torch.testing.assert_close(running.mean.double(), 0.1 * mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=1e-4)


def test_other_memory_and_inputs_that_require_nothing_will_do():
    x, ones = images(4, 3, 2, 2, seed=0), torch.ones(3, dtype=torch.float64)
    with torch.no_grad():
        expected = batch_norm(x, ones, ones)
        assert torch.equal(batch_norm(x.contiguous(), ones, ones), expected)
    out = batch_norm(x, ones, ones)
    out.add_(1)  # the output is no view of anything


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4, 3, 2), {}, "expected a float"),
        ((4, 2, 2, 2), {}, "expected a float"),
        ((4, 3, 2, 2), {"groups": 3}, "3 groups of 4 images"),
        ((4, 3, 1, 1), {"groups": 4}, "one value a channel"),
        ((4, 3, 2, 2), {"residual": torch.zeros(4, 3, 2, 1)}, "both must be equal"),
        ((4, 3, 2, 2), {"residual": torch.zeros(4, 3, 2, 2).half()}, "both must be equal"),
    ],
)
def test_what_does_not_fit_is_refused(shape, options, message):
    with pytest.raises(ValueError, match=message):
        batch_norm(torch.zeros(shape), torch.ones(3), torch.ones(3), **options)


@pytest.mark.distributed
def test_ranks_have_the_statistics_and_gradients_of_one_batch(torchrun):
    assert torchrun(2, SCRIPTS / "batchnorm_ranks.py").stdout.strip() == "ok"


def test_a_cpu_is_told_to_use_torch():
    assert implementation(torch.device("cpu"), torch.float32) == "torch"


@needs_triton
def test_kernels_under_the_interpreter(command):
    command(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", CHECKS, env={"TRITON_INTERPRET": "1"})


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_on_the_gpu(command):
    command(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", CHECKS)


MOST_REGISTERS = {
    "statistics": 96, "normalise": 96, "gradient_sums": 112, "input_gradient": 128, "combine": 96, "fold": 96,
}  # fmt: skip
WHERE = [(n, 90) for n in MOST_REGISTERS] + [(n, c) for c in (80, 100) for n in ("statistics", "gradient_sums")]


@needs_triton
@pytest.mark.parametrize(("name", "capability"), WHERE)
def test_kernels_fit_into_a_gpu(monkeypatch, tmp_path, name, capability):
    """No register is spilled, and of the reductions the programs that are started for a multiprocessor fit there."""
    from fastmoco.kernels.batchnorm_triton import PROGRAMS_PER_PROCESSOR

    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    found = importlib.import_module("_kernels").batch_norm(name, torch.bfloat16, capability, tmp_path)
    assert found.spilled == 0 and found.registers <= MOST_REGISTERS[name], found
    if name in ("statistics", "gradient_sums"):
        assert found.programs >= PROGRAMS_PER_PROCESSOR
        assert found.count("async_copies") > 0  # tiles are copied ahead
    elif name in ("normalise", "input_gradient"):
        assert re.search(r"ld\.global\.v4\.b32", found.kernel.asm["ptx"])  # 16 bytes a thread
