"""Checks of the colour kernel, run by test_colours_triton.py: on a GPU, or with TRITON_INTERPRET=1 on a CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import triton

from pipelines import ViewPair, ViewSpec, draw
from pipelines.colour import Colours, finish
from pipelines.device_colours import DeviceColours
from pipelines.kernels import colours_triton
from pipelines.views import ViewParams

INTERPRETED = triton.knobs.runtime.interpret
DEVICE = "cpu" if INTERPRETED else "cuda"
SPEC = ViewSpec.moco_v1(224)
SOLARIZED = ViewPair(SPEC, replace(SPEC, solarize=0.5))
CASES = [(size, torch.float32) for size in [(1, 1), (3, 5), (32, 32), (2, 1024)]]  # up to two blocks of pixels
CASES += [((17, 61), dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)]  # odd, and over a block
if not INTERPRETED:
    CASES += [(size, dtype) for size in [(224, 224), (225, 223)] for dtype in (torch.float32, torch.bfloat16)]
# float32 sums of four products of at most 5; a step of the dtype around 2.64, the largest normalised value, and one
# for a value at the border of two steps (and the interpreter cuts bfloat16 off where a GPU rounds)
TOLERANCES = {torch.float32: 3e-6, torch.float16: 2**-9 + 3e-6, torch.bfloat16: 2**-6 + 3e-6}


def both(query, key, params, dtype, pair=SPEC):
    return DeviceColours(pair, dtype, query.device, implementation="triton")(query, key, params)


def levels(batch, height, width, seed, lowest=0, highest=255):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, height, width, 3)
    return torch.randint(lowest, highest + 1, shape, generator=generator, dtype=torch.uint8).to(DEVICE)


def drawn(batch, view, pair=SPEC):
    sizes = np.full((batch, 2), 300, dtype=np.int32)
    spec = (*ViewPair.of(pair),)[view]
    return draw(spec, seed=3, epoch=1, ids=np.arange(batch), sizes=sizes, view=view)


def exact(views, params):
    """float64[B, 3, H, W] by the definition of `ViewParams`."""
    pixels = views.cpu().numpy().astype(np.float64)
    mean = pixels.mean(axis=(1, 2))
    linear, gain = params.linear.astype(np.float64), params.mean_gain.astype(np.float64)
    mapped = np.einsum("bij,bhwj->bhwi", linear, pixels) + np.einsum("bij,bj->bi", gain, mean)[:, None, None]
    mapped = np.clip(mapped, 0, 255)
    mapped = np.where(params.solarize[:, None, None, None], np.minimum(mapped, 255 - mapped), mapped)
    values = (mapped / 255 - SPEC.mean) / SPEC.std
    return torch.from_numpy(values).permute(0, 3, 1, 2)


def check(query, key, params, dtype, pair=SPEC):
    results = both(query, key, params, dtype, pair)
    for views, of_view, result in zip((query, key), params, results, strict=True):
        assert result.dtype is dtype
        assert result.shape == (len(views), 3, *views.shape[1:3])
        assert result.permute(0, 2, 3, 1).is_contiguous()
        tolerance = TOLERANCES[dtype]
        torch.testing.assert_close(result.double().cpu(), exact(views, of_view), rtol=0, atol=tolerance)
        if dtype is torch.float32:  # the compiled loop of the CPU does the same sums in the same order
            torch.testing.assert_close(result.cpu(), finish(views.cpu(), of_view, SPEC), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "dtype"), CASES)
def test_both_views_equal_the_definition(size, dtype):
    query, key = levels(2, *size, 0), levels(2, *size, 1)
    check(query, key, (drawn(2, 0), drawn(2, 1)), dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_some_views_are_solarized(dtype):
    query, key = levels(6, 17, 61, 0), levels(6, 17, 61, 1)
    params = drawn(6, 0, SOLARIZED), drawn(6, 1, SOLARIZED)
    assert not params[0].solarize.any()
    assert 0 < params[1].solarize.sum() < 6
    check(query, key, params, dtype, SOLARIZED)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_values_are_clamped_to_black_and_white(dtype):
    """Black, white, nearly black and nearly white views under maps far beyond the papers'."""
    ranges = ((0, 0), (255, 255), (0, 3), (250, 255))
    views = torch.cat([levels(1, 9, 13, 0, *limits) for limits in ranges])
    for factor, gain in ((1.0, 0.0), (5.0, 5.0), (-3.0, -2.0)):
        strong = ViewParams(
            *(getattr(drawn(4, 0), name) for name in ("box", "sigma", "flip", "vertical_flip", "transpose")),
            linear=np.tile(factor * np.eye(3, dtype=np.float32), (4, 1, 1)),
            mean_gain=np.tile(gain * np.eye(3, dtype=np.float32), (4, 1, 1)),
            solarize=np.zeros(4, bool),
        )
        check(views, levels(4, 9, 13, 1), (strong, drawn(4, 1)), dtype)
    query, _ = both(views, views, (strong, strong), torch.float32)
    black = torch.from_numpy(Colours.of(strong, SPEC, 117).low)
    assert torch.equal(query[1].amax((1, 2)).cpu(), black)  # white times a negative factor is black, to the bit


def test_the_same_views_give_the_same_bits_whatever_the_batch():
    query, key = levels(3, 31, 29, 0), levels(3, 31, 29, 1)
    params = drawn(3, 0), drawn(3, 1)
    together = both(query, key, params, torch.bfloat16)
    part = slice(1, 3)
    alone = both(query[part], key[part], tuple(view.take(part) for view in params), torch.bfloat16)
    for whole, piece in zip(together, alone, strict=True):
        assert torch.equal(whole[part], piece)


@pytest.mark.parametrize("channels", [1, pytest.param(3, marks=pytest.mark.skipif(INTERPRETED, reason="takes long"))])
def test_the_sum_of_a_large_white_view_does_not_overflow(channels):
    side = 2_902  # 255 times its pixels are over 2 ** 31
    white = torch.full((1, side, side, channels), 255, dtype=torch.uint8, device=DEVICE)
    maps = torch.zeros((1, 1, 2 * channels**2 + 1), device=DEVICE)
    maps[:, :, channels**2 : -1 : channels + 1] = 1 / side**2  # the mean of each channel alone
    out = torch.empty(white.shape, device=DEVICE)
    kernel = colours_triton.colours_kernel if channels == 3 else colours_triton.grey_kernel
    options = {**colours_triton.OPTIONS, **({"BLOCK": 1 << 20} if INTERPRETED else {})}  # which is faster there
    limits = [0.0] * channels + [255.0] * channels
    kernel[(1, 1)](white, white, out, out, maps, *limits, side**2, SOLARIZE=False, **options)
    assert (out[0, [0, -1], [0, -1]] - 255).abs().max() < 1e-3


def test_an_empty_batch():
    query, key = both(levels(0, 4, 4, 0), levels(0, 4, 4, 1), (drawn(0, 0), drawn(0, 1)), torch.float32)
    assert query.shape == key.shape == (0, 3, 4, 4)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter is no GPU")
def test_a_whole_batch_equals_torchs_operations():
    query, key = levels(256, 224, 224, 0), levels(256, 224, 224, 1)
    params = drawn(256, 0), drawn(256, 1)
    for view, of_view, result in zip((query, key), params, both(query, key, params, torch.float32), strict=True):
        expected = Colours.of(of_view, SPEC, 224 * 224).on_device(view).permute(0, 3, 1, 2)
        torch.testing.assert_close(result, expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize(("size", "dtype"), CASES)
def test_one_channel_is_the_first_of_three_equal_ones(size, dtype):
    """Half of the views solarized."""
    grey = replace(SPEC, mean=SPEC.mean[:1], std=SPEC.std[:1], solarize=0.5)
    query, key = levels(4, *size, 0)[..., :1], levels(4, *size, 1)[..., :1]
    params = drawn(4, 0, grey), drawn(4, 1, grey)
    results = both(query.contiguous(), key.contiguous(), params, dtype, ViewPair.of(grey))
    for views, of_view, result in zip((query, key), params, results, strict=True):
        assert result.dtype is dtype and result.shape == (4, 1, *size)
        expected = exact(views.repeat(1, 1, 1, 3), of_view)[:, :1]
        torch.testing.assert_close(result.double().cpu(), expected, rtol=0, atol=TOLERANCES[dtype])
        on_device = finish(views.contiguous(), of_view, grey, dtype)
        torch.testing.assert_close(result, on_device, rtol=0, atol=TOLERANCES[dtype])
