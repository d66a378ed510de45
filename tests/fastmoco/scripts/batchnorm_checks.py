"""Checks of the grouped BatchNorm by Triton, run by test_batchnorm.py: on a GPU, or by its interpreter on a CPU."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastmoco.kernels import batchnorm_kernels, batchnorm_triton, reference
from fastmoco.kernels.batchnorm import Running, batch_norm

INTERPRETED = batchnorm_triton.INTERPRETED
DEVICE = "cpu" if INTERPRETED else "cuda"
# half a place of each dtype, or a whole one from the interpreter, which cuts off bfloat16 where a GPU rounds
PLACE = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-7 if INTERPRETED else 2**-8}
MODES = ("plain", "relu", "add")
if INTERPRETED:  # so that small tensors have several tiles
    batchnorm_triton.ELEMENTS, batchnorm_triton.SUMMED_ELEMENTS, batchnorm_triton.BLOCK_C = 1024, 256, 16


def images(*shape, seed, dtype=torch.float32):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last)


def inputs(shape, dtype, mode):
    channels = shape[1]
    x = images(*shape, seed=0, dtype=dtype)
    weight, bias = (images(channels, 1, 1, 1, seed=seed).flatten() for seed in (1, 2))
    residual = images(*shape, seed=3, dtype=dtype) if mode == "add" else None
    return x, weight, bias, residual


def leaves(tensors, dtype=None):
    return [None if t is None else t.detach().to(dtype or t.dtype, copy=True).requires_grad_() for t in tensors]


def check(given, grad, groups, mode, epsilon=1e-5, by="triton"):
    """Output, running statistics and all gradients against float64."""
    x, weight, _, _ = given
    exact, ours = leaves(given, torch.float64), leaves(given)
    options = {"relu": mode != "plain", "groups": groups, "epsilon": epsilon}
    expected, mean, variance = reference.batch_norm(*exact, **options)
    old_mean, old_var = torch.full_like(weight, 3.0), torch.full_like(weight, 2.0)
    running = Running(old_mean.clone(), old_var.clone(), torch.tensor(4, device=DEVICE))
    out = batch_norm(*ours, **options, momentum=0.3, running=running, by=by)
    assert out.dtype == x.dtype and out.is_contiguous(memory_format=torch.channels_last)
    # float32 rounds about eight numbers as large as the output, and the mean, by half a place of it
    means = (x.double().mean((0, 2, 3)).abs() / x.double().std((0, 2, 3))).amax().item()
    loose = PLACE[torch.float32] * (8 * expected.abs().amax().item() + 2 * means * weight.abs().amax().item())
    close(out, expected, PLACE[x.dtype], loose)
    close(running.mean, 0.7 * old_mean + 0.3 * mean, 4 * PLACE[torch.float32], loose)
    close(running.var, 0.7 * old_var + 0.3 * variance, 40 * PLACE[torch.float32], loose)
    assert running.batches.item() == 5
    # an output so near to zero that rounding decides on its mask is the mask of neither
    alive = (expected.detach().abs() > 4 * loose) | (mode == "plain")
    grad = grad * alive
    expected.backward(grad.double())
    out.backward(grad)
    values = x.numel() / x.shape[1]
    for name, a, b in zip(("x", "weight", "bias", "residual"), ours, exact, strict=True):
        if a is not None:
            assert a.grad.dtype == a.dtype
            size = b.grad.abs().amax().item()
            # weight and bias are sums of all rows
            rows = values**0.5 if name in ("weight", "bias") else 1
            close(a.grad, b.grad, PLACE[a.dtype], loose * max(size, rows), name)
    return out


def close(ours, expected, relative, absolute, name=""):
    torch.testing.assert_close(
        ours.detach().double(), expected.detach(), rtol=relative, atol=absolute, msg=lambda text: f"{name}: {text}"
    )


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GROUPS = (1, 2, 8)
SMALL, LARGER = (8, 5, 3, 3), (8, 20, 4, 5)  # fewer channels than a tile; a tile and a part of one, several of rows
CASES = [
    *[(SMALL, GROUPS[(place + place // 3) % 3], *rest) for place, rest in enumerate(itertools.product(DTYPES, MODES))],
    (LARGER, 1, torch.float32, "add"),
    (LARGER, 2, torch.bfloat16, "relu"),
    ((8, 1, 1, 3), 2, torch.float32, "add"),
]
if not INTERPRETED:
    LARGE = [(64, 256, 56, 56), (256, 2048, 7, 7), (248, 67, 33, 31)]
    CASES += itertools.product(LARGE, GROUPS, DTYPES, MODES)


@pytest.mark.parametrize(("shape", "groups", "dtype", "mode"), CASES, ids=str)
def test_output_and_gradients_equal_the_reference(shape, groups, dtype, mode):
    check(inputs(shape, dtype, mode), images(*shape, seed=4, dtype=dtype), groups, mode)


@pytest.mark.parametrize(("mean", "spread"), [(1e4, 1.0), (-300.0, 1e-3), (1e-3, 1e-6)])
def test_a_large_mean_costs_no_more_than_its_rounding(mean, spread):
    """Sums of squares of the numbers themselves would lose the variance altogether."""
    shape = (2, 6, 12, 12)
    _, weight, bias, _ = inputs(shape, torch.float32, "plain")
    x = images(*shape, seed=0) * spread + mean
    check((x, weight, bias, None), images(*shape, seed=4), 2, "plain", epsilon=1e-3 * spread**2)


def test_a_first_tile_unlike_all_others_keeps_the_variance():
    """The shift is its mean; the bound is the number of tiles that a program reads."""
    x = images(2, 4, 16, 24, seed=0)  # 12 tiles of 64 rows in 6 parts
    x[0, :, :3] += 1e3
    _, weight, bias, _ = inputs(x.shape, torch.float32, "plain")
    out = batch_norm(x, weight, bias, by="triton", epsilon=0.0)
    expected, _, _ = reference.batch_norm(x.double(), weight.double(), bias.double(), epsilon=0.0)
    close(out, expected, 1e-6, 2e-5)


def test_a_constant_channel_has_no_variance():
    x = torch.full((4, 3, 5, 5), 123.456, device=DEVICE).contiguous(memory_format=torch.channels_last)
    _, weight, bias, _ = inputs(x.shape, torch.float32, "plain")
    out = batch_norm(x, weight, bias, by="triton")
    # the mean is off by half a place at most, and 1/√ε is 316
    torch.testing.assert_close(out, bias[:, None, None].expand_as(x), rtol=0, atol=123.456 * 2**-24 * 317 * 3)


@pytest.mark.parametrize("mode", ["relu", "add"])
def test_what_is_no_number_reaches_the_output_and_the_gradient_of_its_channel(mode):
    x, weight, bias, residual = inputs((4, 5, 3, 3), torch.float32, mode)
    x[2, 1, 0, 0] = torch.nan
    x.requires_grad_()
    out = batch_norm(x, weight, bias, residual, relu=True, by="triton")
    out.sum().backward()
    for seen in (out, x.grad):
        assert seen.isnan().flatten(2).any(2).any(0).tolist() == [False, True, False, False, False]


def test_the_same_input_gives_the_same_bits():
    x, weight, bias, residual = inputs((4, 10, 7, 7), torch.bfloat16, "add")
    results = []
    for _ in range(2):
        given = leaves((x, weight, bias, residual))
        out = batch_norm(*given, by="triton")
        out.backward(images(*x.shape, seed=4, dtype=x.dtype))
        results.append([out, *(t.grad for t in given)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_statistics_of_ranks_combine_to_those_of_all_images():
    """What is sent between ranks, without sending it."""
    x = images(12, 10, 5, 3, seed=0)
    whole, tile = batchnorm_triton.partial_statistics(x, 1)
    settings = 1e-5, 0.1, None, None, None
    expected = batchnorm_triton.finish(whole, 180, tile, *settings)
    own = [
        batchnorm_triton.combine(parts, 45, tile)
        for parts, tile in (batchnorm_triton.partial_statistics(part.clone(), 1) for part in x.chunk(4))
    ]
    moments = batchnorm_triton.finish(torch.cat(own)[None], 180, 45, *settings)
    torch.testing.assert_close(moments, expected, rtol=1e-6, atol=1e-7)


def test_rows_are_counted():
    """Every tile belongs to one part, and no row is counted twice, whatever the numbers."""
    for rows, parts in itertools.product((15, 90), (1, 3)):
        tiles = -(-rows // 16)
        if parts <= tiles:
            x = images(1, 8, 1, rows, seed=rows)
            moments = torch.zeros(1, 2, 8, device=DEVICE)
            statistics = torch.empty(1, parts, 2, 8, device=DEVICE)
            batchnorm_kernels.statistics_kernel[(1, parts, 1)](x, statistics, rows, parts, 8, BLOCK_R=16, BLOCK_C=8)
            batchnorm_kernels.combine_kernel[(1,)](
                statistics, moments, None, None, None, 0.0, 0.0, rows, parts, 1, 8, 16,
                FINISH=False, BLOCK_S=4, BLOCK_C=8,
            )  # fmt: skip
            close(moments[0, 0], x.double().mean((0, 2, 3)), 1e-6, 1e-6)
            close(moments[0, 1], x.double().var((0, 2, 3), correction=0) * rows, 1e-6, 1e-6)
