"""The torch backend's inner loops, compiled by Numba: crop, resize, blur and flip in one pass; colours in another.

A view is linear in the crop's pixels and separable: resizing and then blurring an axis is one band of weights for
each output pixel (`_bands`). So the view is two short sums, first down the columns, then along the rows, rounded once.

The columns' sums are laid down transposed, a block of output rows at a time: so the rows' sums run over neighbouring
numbers too, and both loops fill the vector registers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

_BLOCK = 48  # output rows at once, at most: what is kept of them between the sums stays in a core's second cache
_GROUP = 4  # weights that a loop takes at once; bands are filled up with zeros
# sums may be contracted to fused multiply-adds, but are never reordered
_FAST = {"contract", "nsz"}


def _compiled(signature: str) -> Callable[[Callable], Callable]:
    """Compile on import, for these types alone; the machine code is kept beside this file, or in the user's cache."""

    def decorate(function: Callable) -> Callable:
        options: dict[str, Any] = {"nogil": True, "fastmath": _FAST, "error_model": "numpy"}
        try:
            return numba.njit(signature, cache=True, **options)(function)
        except RuntimeError:  # no folder can be written: compiled anew in each process
            return numba.njit(signature, **options)(function)

    return decorate


@_compiled("i8(f8, i8, i8, i8, f4[::1], i8[::1], f4[:, ::1])")
def _bands(begin, length, limit, size, gauss, starts, weights):
    """Weights of resizing [begin, begin + length) to `size` pixels and blurring them.

    Resizing is antialiased and linear: a triangle as wide as the ratio of the sizes, cut off at the crop's border, as
    Pillow and torchvision do it. The blur's window mirrors about the outermost pixels of the view.

    Args:
        begin: first pixel of the crop.
        length: pixels of the crop.
        limit: pixels there are.
        size: pixels of the view.
        gauss: the blur's window; one number: no blur.
        starts: [size], written: the first pixel of each band.
        weights: [size, n], written; zero beyond a band's end.

    Returns:
        The longest band.
    """
    scale = length / size
    support = max(scale, 1.0)
    radius = len(gauss) // 2
    first, last = math.floor(begin), min(math.ceil(begin + length), limit)
    low, count = np.empty(size, np.int64), np.empty(size, np.int64)
    plain = np.empty((size, int(2 * support) + 3), np.float32)
    for i in range(size):
        centre = begin + (i + 0.5) * scale
        start, stop = max(int(centre - support + 0.5), first), min(int(centre + support + 0.5), last)
        total = 0.0
        for x in range(start, stop):
            weight = max(1.0 - abs(x + 0.5 - centre) / support, 0.0)
            plain[i, x - start] = weight
            total += weight
        for x in range(stop - start):
            plain[i, x] /= total
        low[i], count[i] = start, stop - start
    longest = 0
    weights[:] = 0
    for i in range(size):
        highest = min(i + radius, size - 1)
        starts[i] = low[max(i - radius, 0)]
        longest = max(longest, low[highest] + count[highest] - starts[i])
        for k in range(-radius, radius + 1):
            j = abs(i + k)
            if j >= size:
                j = 2 * size - 2 - j
            at = low[j] - starts[i]
            for x in range(count[j]):
                weights[i, at + x] += gauss[k + radius] * plain[j, x]
    return longest


@_compiled("void(u1[:, ::1], i8, i8, i8[::1], f4[:, ::1], i8, f4[:, ::1])")
def _down(image, first, last, starts, weights, longest, sums):
    """Sums down the columns.

    Args:
        image: uint8[H, W * 3].
        first: first of the numbers of a row that are summed.
        last: end of them.
        starts: int64[n], the first row of each band.
        weights: float32[n, m].
        longest: the longest band.
        sums: float32[n, last - first], written to.
    """
    bottom = len(image) - 1  # a weight beyond the last row is zero
    for row in range(len(starts)):
        target, weight, at = sums[row], weights[row], starts[row]
        a, b, c, d = weight[0], weight[1], weight[2], weight[3]
        line_a, line_b = image[at, first:last], image[min(at + 1, bottom), first:last]
        line_c, line_d = image[min(at + 2, bottom), first:last], image[min(at + 3, bottom), first:last]
        for x in range(len(target)):
            upper = a * np.float32(line_a[x]) + b * np.float32(line_b[x])
            target[x] = upper + c * np.float32(line_c[x]) + d * np.float32(line_d[x])
        for tap in range(_GROUP, longest, 2):
            a, b = weight[tap], weight[tap + 1]
            if a == 0 and b == 0:
                break
            line_a, line_b = image[min(at + tap, bottom), first:last], image[min(at + tap + 1, bottom), first:last]
            for x in range(len(target)):
                target[x] += a * np.float32(line_a[x]) + b * np.float32(line_b[x])


@_compiled("void(f4[:, ::1], i8, i8[::1], f4[:, ::1], i8, b1, u1[:, ::1])")
def _along(turned, first, starts, weights, longest, flip, levels):
    """Sums along the rows of a block, rounded.

    Args:
        turned: float32[w * 3, n]: the sums down the columns, transposed.
        first: the column that `turned` begins with.
        starts: int64[S], the first column of each band.
        weights: float32[S, m].
        longest: the longest band.
        flip: whether left and right change places.
        levels: uint8[S * 3, n], written to.
    """
    size, block = len(starts), turned.shape[1]
    total, half = np.empty(block, np.float32), np.float32(0.5)  # the conversion cuts off: half a level rounds
    for x in range(size):
        place = size - 1 - x if flip else x
        weight, at = weights[x], 3 * (starts[x] - first)
        for channel in range(3):
            a, b, c, d = weight[0], weight[1], weight[2], weight[3]
            where = at + channel
            line_a, line_b, line_c, line_d = turned[where], turned[where + 3], turned[where + 6], turned[where + 9]
            for row in range(block):
                total[row] = half + a * line_a[row] + b * line_b[row] + c * line_c[row] + d * line_d[row]
            for tap in range(_GROUP, longest, _GROUP):
                a, b, c, d = weight[tap], weight[tap + 1], weight[tap + 2], weight[tap + 3]
                if a == 0 and b == 0 and c == 0 and d == 0:
                    break
                where = at + 3 * tap + channel
                line_a, line_b, line_c, line_d = turned[where], turned[where + 3], turned[where + 6], turned[where + 9]
                for row in range(block):
                    total[row] += a * line_a[row] + b * line_b[row] + c * line_c[row] + d * line_d[row]
            level = levels[3 * place + channel]
            for row in range(block):
                level[row] = np.uint8(min(max(total[row], np.float32(0)), np.float32(255)))


@_compiled("void(u1[:, ::1], f8, f8, f8, f8, f4[::1], b1, u1[:, ::1])")
def make_view(image, top, left, height, width, gauss, flip, out):
    """Crop, resize, blur and flip.

    Args:
        image: uint8[H, W * 3].
        top: of the crop, in pixels of the image; a whole number, or a fraction where the image is a shrunken one.
        left: likewise.
        height: likewise.
        width: likewise.
        gauss: float32[2 * radius + 1], the blur's window; one number: no blur.
        flip: whether left and right change places.
        out: uint8[S, S * 3], written to; S is more than the blur's radius.
    """
    size, window = len(out), len(gauss)
    room_down = int(window * height / size + 2 * max(height / size, 1.0)) + _GROUP + 3
    room_along = int(window * width / size + 2 * max(width / size, 1.0)) + _GROUP + 3
    down_at, down = np.empty(size, np.int64), np.empty((size, room_down), np.float32)
    along_at, along = np.empty(size, np.int64), np.empty((size, room_along), np.float32)
    columns = image.shape[1] // 3
    longest_down = _bands(top, height, len(image), size, gauss, down_at, down)
    longest_along = _bands(left, width, columns, size, gauss, along_at, along)
    first, last = math.floor(left), min(math.ceil(left + width), columns)
    used = 3 * (last - first)
    blocks = (size + _BLOCK - 1) // _BLOCK
    block = ((size + blocks - 1) // blocks + 7) // 8 * 8
    sums = np.empty((block, used), np.float32)
    turned = np.zeros((used + 3 * (longest_along + _GROUP), block), np.float32)
    levels = np.empty((3 * size, block), np.uint8)
    for start in range(0, size, block):
        stop = min(start + block, size)
        _down(image, 3 * first, 3 * last, down_at[start:stop], down[start:stop], longest_down, sums)
        for x in range(used):
            column = turned[x]
            for row in range(stop - start):
                column[row] = sums[row, x]
        _along(turned, first, along_at, along, longest_along, flip, levels)
        for row in range(stop - start):
            line = out[start + row]
            for x in range(3 * size):
                line[x] = levels[x, row]


@_compiled("void(u1[::1], f4[:, ::1], f4[:, ::1], f4[::1], f4[::1], f4[::1])")
def paint(view, linear, gain, low, high, out):
    """Colours and normalisation of one view: ``linear @ rgb + gain @ sum of the view's rgb + low``, then clamped.

    Args:
        view: uint8[H * W * 3].
        linear: float32[3, 3].
        gain: float32[3, 3].
        low: float32[3], normalised black.
        high: float32[3], normalised white.
        out: float32[H * W * 3], written to.
    """
    red, green, blue = 0, 0, 0
    pixels = len(view) // 3
    for i in range(pixels):
        red += view[3 * i]
        green += view[3 * i + 1]
        blue += view[3 * i + 2]
    r, g, b = np.float32(red), np.float32(green), np.float32(blue)
    shift_r = low[0] + gain[0, 0] * r + gain[0, 1] * g + gain[0, 2] * b
    shift_g = low[1] + gain[1, 0] * r + gain[1, 1] * g + gain[1, 2] * b
    shift_b = low[2] + gain[2, 0] * r + gain[2, 1] * g + gain[2, 2] * b
    (rr, rg, rb), (gr, gg, gb), (br, bg, bb) = linear[0], linear[1], linear[2]
    low_r, low_g, low_b = low
    high_r, high_g, high_b = high
    for i in range(pixels):  # all numbers by name: read from arrays, they would be read for each pixel
        r, g, b = np.float32(view[3 * i]), np.float32(view[3 * i + 1]), np.float32(view[3 * i + 2])
        out[3 * i] = min(max(rr * r + rg * g + rb * b + shift_r, low_r), high_r)
        out[3 * i + 1] = min(max(gr * r + gg * g + gb * b + shift_g, low_g), high_g)
        out[3 * i + 2] = min(max(br * r + bg * g + bb * b + shift_b, low_b), high_b)
