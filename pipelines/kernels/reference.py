"""The loops of a view in plain scalar code: the reference that tests hold `pipelines.kernels.views` to, bit for bit.

The weights are the same, in whole numbers, and so are the two roundings. What is left out is what makes the other
version fast: vectors, pairs and blocks of rows, transposed tiles.
"""

from __future__ import annotations

import numpy as np

from pipelines.kernels.bands import BETWEEN_BITS, bands, compiled
from pipelines.kernels.views import COLOURED


@compiled("void(u1[:, ::1], f8, f8, f8, f8, f4[::1], b1, b1, b1, u1[:, ::1])")
def make_view(image, top, left, height, width, gauss, flip, vertical_flip, transpose, out):
    """Crop, resize, blur, flip and transpose; arguments as of `pipelines.kernels.views.make_view`."""
    size, rows, channels = len(out), len(image), out.shape[1] // len(out)
    columns = image.shape[1] // channels
    down_at, down, down_bits = bands(top, height, rows, size, gauss, 0, False)
    along_at, along, along_bits = bands(left, width, columns, size, gauss, 0, False)
    down_shift, along_shift = down_bits - BETWEEN_BITS, along_bits + BETWEEN_BITS
    sums = np.empty(channels * columns, np.int64)
    for y in range(size):
        for x in range(channels * columns):
            total = 1 << (down_shift - 1)  # half, so that the shift rounds to the nearest number
            for tap in range(down.shape[1]):
                row = 2 * down_at[y] + tap
                if row < rows:  # the weights beyond the image are zero
                    total += down[y, tap] * image[row, x]
            sums[x] = total >> down_shift
        for x in range(size):
            row, place = size - 1 - y if vertical_flip else y, size - 1 - x if flip else x
            if transpose:
                row, place = place, row
            for channel in range(channels):
                total = 1 << (along_shift - 1)
                for tap in range(along.shape[1]):
                    column = 2 * along_at[x] + tap
                    if column < columns:
                        total += along[x, tap] * sums[channels * column + channel]
                out[row, channels * place + channel] = min(max(total >> along_shift, 0), 255)


@compiled(COLOURED)
def make_coloured_view(
    image, top, left, height, width, gauss, flip, vertical_flip, transpose, linear, gain, low, high, solarize, out
):
    """`make_view`, then the colours; arguments as of `pipelines.kernels.views.make_coloured_view`."""
    size = len(out)
    levels = np.empty(out.shape, np.uint8)
    make_view(image, top, left, height, width, gauss, flip, vertical_flip, transpose, levels)
    if len(low) == 1:
        shift = low[0] + gain[0, 0] * np.float32(levels.sum())
        for y in range(size):
            for x in range(size):
                value = min(max(linear[0, 0] * np.float32(levels[y, x]) + shift, low[0]), high[0])
                out[y, x] = min(value, low[0] + high[0] - value) if solarize else value
        return
    totals = np.zeros(3, np.int64)
    for y in range(size):
        for x in range(size):
            for channel in range(3):
                totals[channel] += levels[y, 3 * x + channel]
    r, g, b = np.float32(totals[0]), np.float32(totals[1]), np.float32(totals[2])
    for channel in range(3):
        shift = low[channel] + gain[channel, 0] * r + gain[channel, 1] * g + gain[channel, 2] * b
        for y in range(size):
            for x in range(size):
                # in the steps of `colour_tile`: in a sum of two products a compiler may fuse either one
                value = linear[channel, 0] * np.float32(levels[y, 3 * x])
                value = linear[channel, 1] * np.float32(levels[y, 3 * x + 1]) + value
                value = linear[channel, 2] * np.float32(levels[y, 3 * x + 2]) + value + shift
                value = min(max(value, low[channel]), high[channel])
                out[y, 3 * x + channel] = min(value, low[channel] + high[channel] - value) if solarize else value
