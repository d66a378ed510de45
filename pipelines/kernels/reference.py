"""The loops of a view in plain scalar code: the reference that tests hold `pipelines.kernels.views` to, bit for bit.

The weights, the order of the sums and the one rounding are the same. What is left out is what makes the other version
fast: vectors, pairs and blocks of rows, transposed tiles.
"""

from __future__ import annotations

import numpy as np

from pipelines.kernels.bands import bands, compiled


@compiled("void(u1[:, ::1], f8, f8, f8, f8, f4[::1], b1, u1[:, ::1])")
def make_view(image, top, left, height, width, gauss, flip, out):
    """Crop, resize, blur and flip; arguments as of `pipelines.kernels.views.make_view`."""
    size, rows, columns = len(out), len(image), image.shape[1] // 3
    down_at, down = np.empty(size, np.int64), np.empty((size, rows), np.float32)
    along_at, along = np.empty(size, np.int64), np.empty((size, columns), np.float32)
    bands(top, height, rows, size, gauss, 1, down_at, down)
    bands(left, width, columns, size, gauss, 1, along_at, along)
    sums = np.empty(3 * columns, np.float32)
    for y in range(size):
        for x in range(3 * columns):
            total = np.float32(0)
            for row in range(down_at[y], rows):  # the weights beyond the band's end are zero
                total += down[y, row - down_at[y]] * np.float32(image[row, x])
            sums[x] = total
        for x in range(size):
            place = size - 1 - x if flip else x
            for channel in range(3):
                total = np.float32(0)
                for column in range(along_at[x], columns):
                    total += along[x, column - along_at[x]] * sums[3 * column + channel]
                # half a level added before the conversion, which truncates: to the nearest level
                level = min(max(total + np.float32(0.5), np.float32(0)), np.float32(255))
                out[y, 3 * place + channel] = np.uint8(level)


@compiled("void(u1[:, ::1], f8, f8, f8, f8, f4[::1], b1, f4[:, ::1], f4[:, ::1], f4[::1], f4[::1], f4[:, ::1])")
def make_coloured_view(image, top, left, height, width, gauss, flip, linear, gain, low, high, out):
    """`make_view`, then the colours; arguments as of `pipelines.kernels.views.make_coloured_view`."""
    size = len(out)
    levels = np.empty((size, 3 * size), np.uint8)
    make_view(image, top, left, height, width, gauss, flip, levels)
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
                out[y, 3 * x + channel] = min(max(value, low[channel]), high[channel])
