"""The weights that a view's rows and columns are sums with, and how the loops are compiled."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

# sums may be contracted to fused multiply-adds, but are never reordered
_FAST = {"contract", "nsz"}


def compiled(signature: str | list[str]) -> Callable[[Callable], Callable]:
    """Compile on import, for these types alone; the machine code is kept beside this file, or in the user's cache."""

    def decorate(function: Callable) -> Callable:
        options: dict[str, Any] = {"nogil": True, "fastmath": _FAST, "error_model": "numpy"}
        try:
            return numba.njit(signature, cache=True, **options)(function)
        except RuntimeError:  # no folder can be written: compiled anew in each process
            return numba.njit(signature, **options)(function)

    return decorate


@compiled("i8(f8, f8, i8, i8, f4[::1], i8, i8[::1], f4[:, ::1])")
def bands(begin, length, limit, size, gauss, together, starts, weights):
    """Weights of resizing [begin, begin + length) to `size` pixels and blurring them.

    Resizing is antialiased and linear: a triangle as wide as the ratio of the sizes, cut off at the crop's border, as
    Pillow and torchvision do it. The blur's window mirrors about the outermost pixels of the view.

    Args:
        begin: first pixel of the crop.
        length: pixels of the crop.
        limit: pixels there are.
        size: pixels of the view.
        gauss: the blur's window; one number: no blur.
        together: so many neighbouring bands begin at the same pixel.
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
        starts[i] = low[max(i // together * together - radius, 0)]
        longest = max(longest, low[highest] + count[highest] - starts[i])
        for k in range(-radius, radius + 1):
            j = abs(i + k)
            if j >= size:
                j = 2 * size - 2 - j
            at = low[j] - starts[i]
            for x in range(count[j]):
                weights[i, at + x] += gauss[k + radius] * plain[j, x]
    return longest
