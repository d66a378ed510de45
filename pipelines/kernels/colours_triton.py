"""Colours and normalisation of both views of a batch on a GPU: one launch, from levels to the model's dtype.

One program per view of an image. It reads the view twice: first for the sums of its channels, which contrast needs,
then for the map; the second read comes from the L2 cache where that holds the views in flight. The sums are whole
numbers (of 64 bits, which a view of any size leaves room in), so their order does not matter, and no program waits for
another: the same input gives the same bits.

B: images, P: pixels of a view.
"""

# the types of Triton's language are made by its decorators, which pyright cannot see through
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

OPTIONS = {"BLOCK": 1024, "num_warps": 8}


@triton.jit
def _pixels(view, start, P, BLOCK: tl.constexpr):
    """Red, green and blue of BLOCK pixels from `start` on, black beyond the last; their places; which of them exist."""
    places = start + tl.arange(0, BLOCK)
    exist = places < P
    red = tl.load(view + 3 * places, mask=exist, other=0)
    green = tl.load(view + 3 * places + 1, mask=exist, other=0)
    blue = tl.load(view + 3 * places + 2, mask=exist, other=0)
    return red, green, blue, 3 * places, exist


@triton.jit
def _store(out, value, low, high, solarized, exist, SOLARIZE: tl.constexpr):
    """Store values of one channel between black and white, solarized or not."""
    value = tl.minimum(tl.maximum(value, low), high)
    if SOLARIZE:
        value = tl.where(solarized, tl.minimum(value, low + high - value), value)
    tl.store(out, value.to(out.dtype.element_ty), mask=exist)


@triton.jit
def _channel(
    out, red, green, blue, of_red, of_green, of_blue, shift, low, high, solarized, exist, SOLARIZE: tl.constexpr
):
    """Store one channel of BLOCK pixels; the sum in the order of `pipelines.kernels.views.paint`."""
    _store(out, of_red * red + of_green * green + of_blue * blue + shift, low, high, solarized, exist, SOLARIZE)


@triton.jit
def colours_kernel(
    query, key, out_query, out_key, maps, low_0, low_1, low_2, high_0, high_1, high_2, P,
    BLOCK: tl.constexpr, SOLARIZE: tl.constexpr,
):  # fmt: skip
    """Image program_id(0), its query (program_id(1) = 0) or its key (1); SOLARIZE: whether some views are solarized."""
    image, of_key = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if of_key == 0:
        view, out = query, out_query
    else:
        view, out = key, out_key
    view += image * P * 3
    out += image * P * 3
    factors = maps + (of_key * tl.num_programs(0) + image) * 19

    reds = tl.zeros([BLOCK], tl.int32)
    greens = tl.zeros([BLOCK], tl.int32)
    blues = tl.zeros([BLOCK], tl.int32)
    for start in range(0, P, BLOCK):
        red, green, blue, _, _ = _pixels(view, start, P, BLOCK)
        reds += red.to(tl.int32)
        greens += green.to(tl.int32)
        blues += blue.to(tl.int32)
    total_r = tl.sum(reds.to(tl.int64), axis=0).to(tl.float32)
    total_g = tl.sum(greens.to(tl.int64), axis=0).to(tl.float32)
    total_b = tl.sum(blues.to(tl.int64), axis=0).to(tl.float32)

    rr, rg, rb = tl.load(factors), tl.load(factors + 1), tl.load(factors + 2)
    gr, gg, gb = tl.load(factors + 3), tl.load(factors + 4), tl.load(factors + 5)
    br, bg, bb = tl.load(factors + 6), tl.load(factors + 7), tl.load(factors + 8)
    gain = factors + 9
    shift_r = low_0 + tl.load(gain) * total_r + tl.load(gain + 1) * total_g + tl.load(gain + 2) * total_b
    shift_g = low_1 + tl.load(gain + 3) * total_r + tl.load(gain + 4) * total_g + tl.load(gain + 5) * total_b
    shift_b = low_2 + tl.load(gain + 6) * total_r + tl.load(gain + 7) * total_g + tl.load(gain + 8) * total_b

    solarized = tl.load(factors + 18) > 0
    for start in range(0, P, BLOCK):
        red, green, blue, places, exist = _pixels(view, start, P, BLOCK)
        r, g, b = red.to(tl.float32), green.to(tl.float32), blue.to(tl.float32)
        _channel(out + places, r, g, b, rr, rg, rb, shift_r, low_0, high_0, solarized, exist, SOLARIZE)
        _channel(out + places + 1, r, g, b, gr, gg, gb, shift_g, low_1, high_1, solarized, exist, SOLARIZE)
        _channel(out + places + 2, r, g, b, br, bg, bb, shift_b, low_2, high_2, solarized, exist, SOLARIZE)


@triton.jit
def grey_kernel(
    query, key, out_query, out_key, maps, low, high, P, BLOCK: tl.constexpr, SOLARIZE: tl.constexpr
):  # fmt: skip
    """`colours_kernel` of one channel."""
    image, of_key = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if of_key == 0:
        view, out = query, out_query
    else:
        view, out = key, out_key
    view += image * P
    out += image * P
    factors = maps + (of_key * tl.num_programs(0) + image) * 3
    levels = tl.zeros([BLOCK], tl.int32)
    for start in range(0, P, BLOCK):
        places = start + tl.arange(0, BLOCK)
        levels += tl.load(view + places, mask=places < P, other=0).to(tl.int32)
    shift = low + tl.load(factors + 1) * tl.sum(levels.to(tl.int64), axis=0).to(tl.float32)
    factor, solarized = tl.load(factors), tl.load(factors + 2) > 0
    for start in range(0, P, BLOCK):
        places = start + tl.arange(0, BLOCK)
        exist = places < P
        value = factor * tl.load(view + places, mask=exist, other=0).to(tl.float32) + shift
        _store(out + places, value, low, high, solarized, exist, SOLARIZE)


def paint(
    query: torch.Tensor,
    key: torch.Tensor,
    maps: torch.Tensor,
    low: Sequence[float],
    high: Sequence[float],
    dtype: torch.dtype,
    solarize: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Map the levels of two views of each image to normalised values.

    Args:
        query: uint8[B, H, W, C], contiguous, on the device, of C = 1 or 3 channels.
        key: likewise.
        maps: float32[2, B, 2 * C * C + 1] on the device, of the queries and of the keys: ``linear``, then ``gain``, of
            `pipelines.colour.Colours`, then 1 for views to solarize.
        low: normalised black of each channel, which is also what the map adds.
        high: normalised white.
        dtype: of the result, float32, float16 or bfloat16; the arithmetic is float32 whatever it is.
        solarize: whether there may be such views.

    Returns:
        Two [B, H, W, C] tensors in new memory.
    """
    outs = torch.empty_like(query, dtype=dtype), torch.empty_like(key, dtype=dtype)
    batch, height, width, channels = query.shape
    kernel = grey_kernel if channels == 1 else colours_kernel
    if batch:
        kernel[(batch, 2)](query, key, *outs, maps, *low, *high, height * width, SOLARIZE=solarize, **OPTIONS)
    return outs
