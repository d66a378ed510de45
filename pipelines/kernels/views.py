"""The torch backend's inner loops, compiled by Numba: crop, resize, blur, flips, turns and colours.

A view is linear in the crop's pixels and separable: resizing and then blurring an axis is one band of weights for
each output pixel (`pipelines.kernels.bands`). So a view is two short sums, first down the columns, then along the
rows, in 16-bit integers: the filter that resizes images in packing, too (`shards.kernels.filtering`).
`pipelines.kernels.reference` computes the same without vectors.
"""

from __future__ import annotations

import math

import numpy as np

from pipelines.kernels.bands import BETWEEN_BITS, bands, compiled
from pipelines.kernels.vectors import colour_tile, filter_image, transpose_tile
from shards.kernels.filters import RUN, STRIP, room
from shards.kernels.llvm import SIDE


@compiled("void(u1[:, ::1], u1[:, ::1])")
def _lay_down(lines, out):
    """``out[:] = lines[:, : len(out)].T``."""
    rows, count = len(out), len(lines)
    whole_rows, whole = rows // SIDE * SIDE, count // SIDE * SIDE
    for row in range(0, whole_rows, SIDE):
        for line in range(0, whole, SIDE):
            transpose_tile(lines, line, row, out, row, line)
    for row in range(rows):
        for line in range(whole if row < whole_rows else 0, count):
            out[row, line] = lines[line, row]


@compiled("u1[:, ::1](u1[:, ::1], i8)")
def _widened(image, columns):
    """The image with columns of zeros added on the right, so that whole vectors can be read of a narrow image."""
    wide = np.empty((len(image), columns), np.uint8)
    for row in range(len(image)):
        for x in range(columns):
            wide[row, x] = image[row, x] if x < image.shape[1] else 0
    return wide


_room = compiled("UniTuple(i8, 3)(i8, i8, i8, i8)")(room)


@compiled("u1[:, ::1](u1[:, ::1], i8, i8, b1, b1)")
def _reoriented(levels, size, channels, vertical_flip, transpose):
    """A transposed view of `size` pixels flipped, then transposed, in new memory."""
    out = np.empty_like(levels)
    for line in range(channels * size):
        x, channel, level = line // channels, line % channels, levels[line]
        for y in range(size):
            to = size - 1 - y if vertical_flip else y
            if transpose:
                out[channels * to + channel, x] = level[y]
            else:
                out[line, to] = level[y]
    return out


@compiled("u1[:, ::1](u1[:, ::1], f8, f8, f8, f8, i8, i8, f4[::1], b1, b1, b1)")
def _levels(image, top, left, height, width, size, channels, gauss, flip, vertical_flip, transpose):
    """A view, transposed: uint8[S * C, at least S]; arguments as of `make_view`."""
    columns = image.shape[1] // channels
    narrowest = (STRIP + channels - 1) // channels  # pixels of a row that the filter reads at least
    if columns < narrowest:
        image = _widened(image, channels * narrowest)
    first_row, last_row = math.floor(top), min(math.ceil(top + height), len(image))
    # a narrow crop at the right border begins further left
    first = max(min(math.floor(left), image.shape[1] // channels - narrowest), 0)
    pixels = max(min(math.ceil(left + width), columns) - first, narrowest)
    down_at, down, down_bits = bands(top, height, len(image), size, gauss, first_row, False)
    along_at, along, along_bits = bands(left, width, columns, size, gauss, first, flip)
    down_pairs, along_pairs, longest = down.shape[1] // 2, along.shape[1] // 2, 0
    for row in range(0, len(down_at), RUN):
        longest = max(longest, down_at[row + RUN - 1] - down_at[row] + down_pairs)
    pairs, turned, woven = _room(longest, pixels, channels, along_pairs)
    levels = np.empty((channels * size, len(down_at)), np.uint8)
    filter_image(
        image.reshape(-1)[first_row * image.shape[1] + channels * first :], image.shape[1], last_row - first_row,
        pixels, channels, down_at, down, down_pairs, len(down_at) // RUN, along_at, along, along_pairs, size,
        down_bits - BETWEEN_BITS, along_bits + BETWEEN_BITS,
        np.empty(pairs, np.int16), np.empty(turned, np.int16), np.empty(woven, np.int16), levels,
    )  # fmt: skip
    return _reoriented(levels, size, channels, vertical_flip, transpose) if vertical_flip or transpose else levels


@compiled("void(u1[:, ::1], f8, f8, f8, f8, f4[::1], b1, b1, b1, u1[:, ::1])")
def make_view(image, top, left, height, width, gauss, flip, vertical_flip, transpose, out):
    """Crop, resize, blur, flip and transpose.

    Args:
        image: uint8[H, W * C], of C = 1 or 3 channels.
        top: of the crop, in pixels of the image; a whole number, or a fraction where the image is a shrunken one.
        left: of the crop, as `top`.
        height: of the crop, as `top`.
        width: of the crop, as `top`.
        gauss: float32[2 * radius + 1], the blur's window; one number: no blur.
        flip: whether left and right are exchanged.
        vertical_flip: whether top and bottom are.
        transpose: whether rows and columns are, after the flips.
        out: uint8[S, S * C], written to; S is more than the blur's radius.
    """
    size, channels = len(out), out.shape[1] // len(out)
    _lay_down(_levels(image, top, left, height, width, size, channels, gauss, flip, vertical_flip, transpose), out)


@compiled("void(f4[::1], f4[::1], f4[::1])")
def _solarize(values, low, high):
    """Invert what is above the middle of black and white, in place; values are float32[H * W * 3]."""
    red, green, blue = low[0] + high[0], low[1] + high[1], low[2] + high[2]
    for i in range(len(values) // 3):
        values[3 * i] = min(values[3 * i], red - values[3 * i])
        values[3 * i + 1] = min(values[3 * i + 1], green - values[3 * i + 1])
        values[3 * i + 2] = min(values[3 * i + 2], blue - values[3 * i + 2])


@compiled(["void(u1[::1], f4, f4, f4, f4, b1, f4[::1])", "void(f4[::1], f4, f4, f4, f4, b1, f4[::1])"])
def _paint_grey(view, factor, gain, low, high, solarize, out):
    """`paint` of one channel."""
    total = 0
    for level in view:
        total += level
    shift = low + gain * np.float32(total)
    for i in range(len(view)):
        value = min(max(factor * np.float32(view[i]) + shift, low), high)
        out[i] = min(value, low + high - value) if solarize else value


_PAINT = "f4[:, ::1], f4[:, ::1], f4[::1], f4[::1], b1, f4[::1]"


@compiled([f"void(u1[::1], {_PAINT})", f"void(f4[::1], {_PAINT})"])
def paint(view, linear, gain, low, high, solarize, out):
    """Colours and normalisation of one view: ``linear @ rgb + gain @ (sum of the view's rgb) + low``, clamped.

    Args:
        view: uint8 or float32[H * W * C], of C = 1 or 3 channels: levels.
        linear: float32[C, C].
        gain: float32[C, C].
        low: float32[C], normalised black.
        high: float32[C], normalised white.
        solarize: whether the result is solarized (`pipelines.views.ViewParams`).
        out: float32[H * W * C], written to.
    """
    if len(low) == 1:
        _paint_grey(view, linear[0, 0], gain[0, 0], low[0], high[0], solarize, out)
        return
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
    if solarize:
        _solarize(out, low, high)


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


COLOURED = (
    "void(u1[:, ::1], f8, f8, f8, f8, f4[::1], b1, b1, b1, f4[:, ::1], f4[:, ::1], f4[::1], f4[::1], b1, f4[:, ::1])"
)
"""Types of the arguments of `make_coloured_view`."""


@compiled(COLOURED)
def make_coloured_view(
    image, top, left, height, width, gauss, flip, vertical_flip, transpose, linear, gain, low, high, solarize, out
):
    """`make_view` and `paint` in one pass: transposing the view back, it computes the colours tile by tile.

    Args:
        image: as of `make_view`.
        top: as of `make_view`.
        left: as of `make_view`.
        height: as of `make_view`.
        width: as of `make_view`.
        gauss: as of `make_view`.
        flip: as of `make_view`.
        vertical_flip: as of `make_view`.
        transpose: as of `make_view`.
        linear: as of `paint`.
        gain: as of `paint`.
        low: as of `paint`.
        high: as of `paint`.
        solarize: as of `paint`.
        out: float32[S, S * C], written to.
    """
    size = len(out)
    if len(low) == 1:  # a map of one channel costs little
        view = np.empty(out.shape, np.uint8)
        make_view(image, top, left, height, width, gauss, flip, vertical_flip, transpose, view)
        paint(view.reshape(-1), linear, gain, low, high, solarize, out.reshape(-1))
        return
    levels = _levels(image, top, left, height, width, size, 3, gauss, flip, vertical_flip, transpose)
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
    if solarize:  # few views are: a pass of its own costs the others nothing
        _solarize(out.reshape(-1), low, high)
