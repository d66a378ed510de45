"""The weights of a view's rows and columns, and how the loops are compiled."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

# A product and its sum may become one fused multiply-add, and -0.0 may become 0.0. Sums are never reordered
# ("reassoc"): a view would depend on the width of a machine's vectors, and differ from the reference's.
_FAST = {"contract", "nsz"}


def compiled(signature: str | list[str]) -> Callable[[Callable], Callable]:
    """Compile on import for these types only; the machine code is kept in `__pycache__`, or in the user's cache.

    On import, because a compilation at the first call would stop the first batch for seconds, in every thread.
    """

    def decorate(function: Callable) -> Callable:
        options: dict[str, Any] = {"nogil": True, "fastmath": _FAST, "error_model": "numpy"}
        try:
            return numba.njit(signature, cache=True, **options)(function)
        except RuntimeError:  # no cache folder is writable: each process compiles for itself
            return numba.njit(signature, **options)(function)

    return decorate


@compiled("i8(f8, f8, i8, i8, f4[::1], i8, i8[::1], f4[:, ::1])")
def bands(begin, length, limit, size, gauss, together, starts, weights):
    """Weights that resize [begin, begin + length) to `size` pixels and blur the result, along one axis.

    Resizing is antialiased and linear: a triangle as wide as the ratio of the sizes, cut off at the crop's border, as
    in Pillow and torchvision. The blur mirrors the view about its outermost pixels.

    Args:
        begin: first pixel of the crop.
        length: pixels of the crop.
        limit: pixels of the image.
        size: pixels of the view.
        gauss: the blur's window; one number: no blur.
        together: number of neighbouring bands that begin at the same pixel.
        starts: int64[size], written to: the first pixel of each band.
        weights: float32[size or more, n], written to; zero beyond a band's end.

    Returns:
        The length of the longest band.
    """
    scale = length / size
    # an enlargement interpolates between two neighbours: a narrower triangle could miss every pixel's centre
    support = max(scale, 1.0)
    radius = len(gauss) // 2
    first, last = math.floor(begin), min(math.ceil(begin + length), limit)
    low, count = np.empty(size, np.int64), np.empty(size, np.int64)
    plain = np.empty((size, int(2 * support) + 3), np.float32)
    for i in range(size):  # pixel x covers [x, x + 1), so its centre is x + 0.5
        centre = begin + (i + 0.5) * scale
        start, stop = max(int(centre - support + 0.5), first), min(int(centre + support + 0.5), last)
        total = 0.0
        for x in range(start, stop):
            weight = max(1.0 - abs(x + 0.5 - centre) / support, 0.0)
            plain[i, x - start] = weight
            total += weight
        for x in range(stop - start):  # the border cuts triangles off; the rest has to add up to 1 again
            plain[i, x] /= total
        low[i], count[i] = start, stop - start
    longest = 0
    weights[:] = 0
    for i in range(size):  # blurring the resized pixels is a weighted sum of their bands
        highest = min(i + radius, size - 1)
        starts[i] = low[max(i // together * together - radius, 0)]
        longest = max(longest, low[highest] + count[highest] - starts[i])
        for k in range(-radius, radius + 1):
            j = abs(i + k)
            if j >= size:  # the outermost pixel itself is not repeated: pixel -1 is pixel 1
                j = 2 * size - 2 - j
            at = low[j] - starts[i]
            for x in range(count[j]):
                weights[i, at + x] += gauss[k + radius] * plain[j, x]
    return longest
