"""What `shards.kernels.filtering` computes, in NumPy: the reference that tests hold it to, bit for bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards.kernels.filters import Filter


def filtered(
    pixels: NDArray[np.uint8], down: Filter, along: Filter, size: tuple[int, int], shifts: tuple[int, int]
) -> NDArray[np.uint8]:
    """Both passes: uint8[H, W, C] to uint8[height, width, C].

    Args:
        pixels: the image.
        down: of the columns.
        along: of the rows.
        size: height and width of the result.
        shifts: by how many bits the sums of the two passes are divided.
    """
    (height, width), (rows, columns) = size, pixels.shape[:2]
    between = rounded(np.einsum("yr,rxc->yxc", dense(down, rows)[:height], pixels.astype(np.int64)), shifts[0])
    assert (between == between.astype(np.int16)).all()
    levels = rounded(np.einsum("xk,ykc->yxc", dense(along, columns)[:width], between), shifts[1])
    return levels.clip(0, 255).astype(np.uint8)


def dense(weights: Filter, inputs: int) -> NDArray[np.int64]:
    """The filter as a matrix, int64[n, inputs]."""
    count, taps = weights.weights.shape
    matrix = np.zeros((count, inputs + taps), np.int64)
    matrix[np.arange(count)[:, None], 2 * weights.at[:, None] + np.arange(taps)] = weights.weights
    assert not matrix[:, inputs:].any()
    return matrix[:, :inputs]


def rounded(sums: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Divided by 2 ** bits, to the nearest whole number, halves to the even one."""
    return np.rint(sums / (1 << bits)).astype(np.int64)
