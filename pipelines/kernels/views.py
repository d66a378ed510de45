"""The torch backend's inner loops, compiled by Numba: crop, resize, blur, flip and colours.

A view is linear in the crop's pixels and separable: resizing and then blurring an axis is one band of weights for
each output pixel (`pipelines.kernels.bands`). So a view is two short sums, first down the columns, then along the
rows, and is rounded once. Both are vectorised (`pipelines.kernels.vectors`): the columns' sums are transposed, a block
of output rows at a time, so that the rows' sums run over neighbouring numbers as well. `pipelines.kernels.reference`
computes the same without vectors.
"""

from __future__ import annotations

import math

import numpy as np

from pipelines.kernels.bands import bands, compiled
from pipelines.kernels.vectors import COLUMNS, RUN, SIDE, add_rows, add_runs, colour_tile, transpose_tile


@compiled("void(u1[:, ::1], i8, i8[::1], f4[:, ::1], i8, f4[:, ::1])")
def _down(image, first, starts, weights, longest, sums):
    """Sums down the columns, for two output rows at once, because neighbouring rows read the same pixels.

    Args:
        image: uint8[H, W * 3].
        first: index in a row of the first number to sum; `sums` has as many columns as there are numbers.
        starts: int64[n], the first row of each band; the two of a pair begin at the same one.
        weights: float32[n or more, m], and n + 1 or more for an odd n: the last pair needs a second row, of zeros.
        longest: length of the longest band.
        sums: float32[n or more, a multiple of COLUMNS], written to; likewise.
    """
    for row in range(0, len(starts), 2):
        taps = min(longest, len(image) - starts[row])  # weights beyond the last row of the image are zero
        for x in range(0, sums.shape[1], COLUMNS):
            add_rows(image, starts[row], first + x, taps, weights, row, sums, row, x)


@compiled("void(f4[:, ::1], i8, i8[::1], f4[:, ::1], b1, u1[:, ::1], i8)")
def _along(turned, first, starts, weights, flip, levels, row):
    """Sums along the rows of a block, rounded.

    Args:
        turned: float32[w, RUN]: the sums down the columns, transposed.
        first: index in a row of the image of the first line of `turned`.
        starts: int64[S], the first column of each band.
        weights: float32[S, m], zero beyond a band's end.
        flip: whether left and right are exchanged; costs nothing, as it only changes where a result is written.
        levels: uint8[S * 3, n], written to.
        row: the block's first output row.
    """
    # flat, because a run of one line must be addressed by a single index
    size, lines, out = len(starts), turned.reshape(-1), levels.reshape(-1)
    for x in range(size):
        taps = weights.shape[1]
        while weights[x, taps - 1] == 0:  # bands differ in length; beyond its end a band would read past `turned`
            taps -= 1
        at, place = 3 * starts[x] - first, size - 1 - x if flip else x
        for channel in range(3):
            to = (3 * place + channel) * levels.shape[1] + row
            add_runs(lines, RUN * (at + channel), 3 * RUN, taps, weights, x, out, to)


@compiled(["void(u1[:, ::1], u1[:, ::1], i8)", "void(f4[:, ::1], f4[:, ::1], i8)"])
def _lay_down(lines, out, column):
    """``out[:, column : column + len(lines)] = lines[:, : len(out)].T``."""
    rows, count = len(out), len(lines)
    whole_rows, whole = rows // SIDE * SIDE, count // SIDE * SIDE
    for row in range(0, whole_rows, SIDE):
        for line in range(0, whole, SIDE):
            transpose_tile(lines, line, row, out, row, column + line)
    for row in range(rows):
        for line in range(whole if row < whole_rows else 0, count):
            out[row, column + line] = lines[line, row]


@compiled("u1[:, ::1](u1[:, ::1], i8)")
def _widened(image, columns):
    """The image with columns of zeros added on the right, so that whole vectors can be read of a narrow image."""
    wide = np.empty((len(image), columns), np.uint8)
    for row in range(len(image)):
        for x in range(columns):
            wide[row, x] = image[row, x] if x < image.shape[1] else 0
    return wide


@compiled("u1[:, ::1](u1[:, ::1], f8, f8, f8, f8, i8, f4[::1], b1)")
def _levels(image, top, left, height, width, size, gauss, flip):
    """A view, transposed: uint8[S * 3, at least S]; arguments as of `make_view`."""
    window = len(gauss)
    # room for the longest band: the pixels under the window and the filter's two sides, and some for rounding; down the
    # columns one output row more, because the two bands of a pair begin at the same pixel
    room_down = int((window + 1) * height / size + 2 * max(height / size, 1.0)) + 5
    room_along = int(window * width / size + 2 * max(width / size, 1.0)) + 4
    down_at, down = np.empty(size, np.int64), np.empty((size + 1, room_down), np.float32)
    along_at, along = np.empty(size, np.int64), np.empty((size, room_along), np.float32)
    columns = image.shape[1] // 3
    longest = bands(top, height, len(image), size, gauss, 2, down_at, down)
    bands(left, width, columns, size, gauss, 1, along_at, along)
    # the crop's numbers in a row, up to whole vectors; a crop at the right border begins further left instead
    used = (3 * (min(math.ceil(left + width), columns) - math.floor(left)) + COLUMNS - 1) // COLUMNS * COLUMNS
    if image.shape[1] < used:
        image = _widened(image, used)
    first = min(3 * math.floor(left), image.shape[1] - used)
    # blocks of rows, so that their sums stay in the cache until the second pass has read them
    sums, turned = np.empty((RUN, used), np.float32), np.empty((used, RUN), np.float32)
    levels = np.empty((3 * size, (size + RUN - 1) // RUN * RUN), np.uint8)
    for row in range(0, size, RUN):
        _down(image, first, down_at[row : row + RUN], down[row:], longest, sums)
        for x in range(0, used, SIDE):
            for line in range(0, RUN, SIDE):
                transpose_tile(sums, line, x, turned, x, line)
        _along(turned, first, along_at, along, flip, levels, row)
    return levels


@compiled("void(u1[:, ::1], f8, f8, f8, f8, f4[::1], b1, u1[:, ::1])")
def make_view(image, top, left, height, width, gauss, flip, out):
    """Crop, resize, blur and flip.

    Args:
        image: uint8[H, W * 3].
        top: of the crop, in pixels of the image; a whole number, or a fraction where the image is a shrunken one.
        left: likewise.
        height: likewise.
        width: likewise.
        gauss: float32[2 * radius + 1], the blur's window; one number: no blur.
        flip: whether left and right are exchanged.
        out: uint8[S, S * 3], written to; S is more than the blur's radius.
    """
    _lay_down(_levels(image, top, left, height, width, len(out), gauss, flip), out, 0)


@compiled("f4(u1[:, ::1], i8, i8)")
def _total(levels, size, channel):
    """Sum of one channel of a transposed view."""
    total = np.empty(size, np.float32)  # whole numbers below 2 ** 24, which float32 represents exactly
    for row in range(size):
        total[row] = 0
    for line in range(channel, 3 * size, 3):
        level = levels[line]
        for row in range(size):
            total[row] += np.float32(level[row])
    together = 0.0
    for row in range(size):
        together += total[row]
    return np.float32(together)


@compiled("void(u1[:, ::1], f8, f8, f8, f8, f4[::1], b1, f4[:, ::1], f4[:, ::1], f4[::1], f4[::1], f4[:, ::1])")
def make_coloured_view(image, top, left, height, width, gauss, flip, linear, gain, low, high, out):
    """`make_view` and `paint` in one pass: transposing the view back, it computes the colours tile by tile.

    Args:
        image: as of `make_view`.
        top: as of `make_view`.
        left: as of `make_view`.
        height: as of `make_view`.
        width: as of `make_view`.
        gauss: as of `make_view`.
        flip: as of `make_view`.
        linear: as of `paint`.
        gain: as of `paint`.
        low: as of `paint`.
        high: as of `paint`.
        out: float32[S, S * 3], written to.
    """
    size = len(out)
    levels = _levels(image, top, left, height, width, size, gauss, flip)
    colours = np.empty((3, 6), np.float32)
    r, g, b = _total(levels, size, 0), _total(levels, size, 1), _total(levels, size, 2)
    for channel in range(3):
        for number in range(3):
            colours[channel, number] = linear[channel, number]
        colours[channel, 3] = low[channel] + gain[channel, 0] * r + gain[channel, 1] * g + gain[channel, 2] * b
        colours[channel, 4], colours[channel, 5] = low[channel], high[channel]
    whole = size // SIDE * SIDE
    for row in range(0, whole, SIDE):
        for x in range(0, whole, SIDE):
            colour_tile(levels, x, row, colours, out)
    for row in range(size):  # what is left beside and below the whole tiles
        for x in range(whole if row < whole else 0, size):
            r, g, b = (
                np.float32(levels[3 * x, row]),
                np.float32(levels[3 * x + 1, row]),
                np.float32(levels[3 * x + 2, row]),
            )
            for channel in range(3):
                of_r, of_g, of_b, base, least, most = colours[channel]
                out[row, 3 * x + channel] = min(max(of_r * r + of_g * g + of_b * b + base, least), most)


@compiled("void(u1[::1], f4[:, ::1], f4[:, ::1], f4[::1], f4[::1], f4[::1])")
def paint(view, linear, gain, low, high, out):
    """Colours and normalisation of one view: ``linear @ rgb + gain @ (sum of the view's rgb) + low``, clamped.

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
    for i in range(
        pixels
    ):  # local names, because `out` might overlap the arrays: elements would be loaded again for each pixel
        r, g, b = np.float32(view[3 * i]), np.float32(view[3 * i + 1]), np.float32(view[3 * i + 2])
        out[3 * i] = min(max(rr * r + rg * g + rb * b + shift_r, low_r), high_r)
        out[3 * i + 1] = min(max(gr * r + gg * g + gb * b + shift_g, low_g), high_g)
        out[3 * i + 2] = min(max(br * r + bg * g + bb * b + shift_b, low_b), high_b)
