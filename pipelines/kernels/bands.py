"""The weights of a view's rows and columns, and how the loops are compiled."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from pipelines.kernels.cache import caching
from shards.kernels.filters import RUN

# A product and its sum may become one fused multiply-add, and -0.0 may become 0.0. Sums are never reordered
# ("reassoc"): a view would depend on the width of a machine's vectors, and differ from the reference's.
_FAST = {"contract", "nsz"}


def compiled(signature: str | list[str]) -> Callable[[Callable], Callable]:
    """Compile on import for these types only; the machine code is kept on disk (`pipelines.kernels.cache`).

    On import, because a compilation at the first call would stop the first batch for seconds, in every thread.
    """

    def decorate(function: Callable) -> Callable:
        options: dict[str, Any] = {"nogil": True, "fastmath": _FAST, "error_model": "numpy"}
        with caching() as kept:  # if not, each process compiles for itself
            return numba.njit(signature, cache=kept, **options)(function)

    return decorate


BETWEEN_BITS = 7
"""Values between the two passes are multiples of 1 / 128: 255 of them are the most that int16 holds."""
_MOST_BITS = 16  # of a weight: with more, sums of 255 * 128 would exceed int32
_FINER_BITS = 8  # by which weights are finer where they are added up


@compiled("Tuple((i8[::1], f4[:, ::1]))(f8, f8, i8, i8, f4[::1])")
def exact_bands(begin, length, limit, size, gauss):
    """Weights that resize [begin, begin + length) to `size` pixels and blur the result, along one axis.

    Resizing is antialiased and linear: a triangle as wide as the ratio of the sizes, cut off at the crop's border, as
    in Pillow and torchvision. The blur mirrors the view about its outermost pixels.

    Args:
        begin: first pixel of the crop.
        length: pixels of the crop.
        limit: pixels of the image.
        size: pixels of the view.
        gauss: the blur's window; one number: no blur.

    Returns:
        int64[size], the first pixel of each band, in ascending order; and float32[size, K], the weights of K pixels
        from there, which are zero beyond the image.
    """
    scale = length / size
    # an enlargement interpolates between two neighbours: a narrower triangle could miss every pixel's centre
    support = max(scale, 1.0)
    inverse, radius, widest = 1.0 / support, len(gauss) // 2, int(2 * support) + 1
    first, last = math.floor(begin), min(math.ceil(begin + length), limit)
    low, plain = np.empty(size, np.int64), np.empty((size, widest), np.float32)
    for i in range(size):  # pixel x covers [x, x + 1), so its centre is x + 0.5
        centre = begin + (i + 0.5) * scale
        start, stop = max(int(centre - support + 0.5), first), min(int(centre + support + 0.5), last)
        total = 0.0
        for x in range(widest):
            weight = max(1.0 - abs(start + x + 0.5 - centre) * inverse, 0.0) if start + x < stop else 0.0
            plain[i, x] = weight
            total += weight
        normal = 1.0 / total
        for x in range(widest):  # the border cuts triangles off; the rest has to add up to 1 again
            plain[i, x] *= normal
        low[i] = start
    longest = 0
    for i in range(size):
        longest = max(longest, low[min(i + radius, size - 1)] + widest - low[max(i - radius, 0)])
    at, exact = np.empty(size, np.int64), np.zeros((size, longest), np.float32)
    for i in range(size):  # blurring the resized pixels is a weighted sum of their bands
        at[i] = start = low[max(i - radius, 0)]
        for k in range(-radius, radius + 1):
            j = abs(i + k)
            if j >= size:  # the outermost pixel itself is not repeated: pixel -1 is pixel 1
                j = 2 * size - 2 - j
            for x in range(widest):
                exact[i, low[j] - start + x] += gauss[k + radius] * plain[j, x]
    return at, exact


@compiled("Tuple((i8[::1], i2[:, ::1], i8))(f8, f8, i8, i8, f4[::1], i8, b1)")
def bands(begin, length, limit, size, gauss, origin, flip):
    """`exact_bands` as whole numbers, for `shards.kernels.filtering`.

    Args:
        begin: as of `exact_bands`.
        length: as of `exact_bands`.
        limit: as of `exact_bands`.
        size: as of `exact_bands`.
        gauss: as of `exact_bands`.
        origin: the pixel from which places are counted.
        flip: whether the last band comes first.

    Returns:
        ``at``, int64[n], and ``weights``, int16[n, an even number], as of `shards.kernels.filters.Filter`, n the size
        rounded up to whole blocks; with a flip, ``at`` descends. And how many bits a weight of 1 has.
    """
    low, exact = exact_bands(begin, length, limit, size, gauss)
    longest, largest, bits = exact.shape[1], exact.max(), _MOST_BITS
    while largest * 2**bits > 32767:
        bits -= 1
    padded = (size + RUN - 1) // RUN * RUN
    at, weights = np.empty(padded, np.int64), np.zeros((padded, (longest + 2) // 2 * 2), np.int16)
    one, half = np.float32(2.0 ** (bits + _FINER_BITS)), 2 ** (_FINER_BITS - 1)
    for i in range(size):
        place, start = size - 1 - i if flip else i, low[i] - origin
        at[place], lead = start // 2, start % 2
        total, before = half, 0
        for x in range(
            longest
        ):  # sums are rounded and not weights, so that these add up to 1, and errors cancel nearby
            total += int(exact[i, x] * one + np.float32(0.5))
            now = total >> _FINER_BITS
            weights[place, lead + x] = now - before
            before = now
    at[size:] = at[size - 1]
    return at, weights, bits
