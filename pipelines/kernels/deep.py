"""Crop, resize, blur, flips and turns of 16-bit images: `pipelines.kernels.views` in float32, without any rounding.

Values are scaled to levels, from 0 to 255, as they are read; a view is then two sums, down the columns and along the
rows, with the exact weights of `pipelines.kernels.bands`. Rows are summed side by side, so that the innermost loops run
along memory and the compiler makes vectors of them.
"""

from __future__ import annotations

import numpy as np

from pipelines.kernels.bands import compiled, exact_bands

_BLOCK = 16  # rows that are summed down before they are transposed, which stay in the cache meanwhile


@compiled("f4[:, ::1](u2[:, ::1], f4[:, ::1], i8, i8, i8[::1], f4[:, ::1])")
def _down(image, scaling, first, columns, at, weights):
    """Sums down the columns of an image's levels, transposed.

    Args:
        image: uint16[H, W * C].
        scaling: float32[2, C], as of `make_view`.
        first: number of a row at which the sums begin.
        columns: numbers of a row that are summed.
        at: int64[S], the first row of each sum, in ascending order.
        weights: float32[S, K].

    Returns:
        float32[columns, S].
    """
    size, taps = weights.shape
    channels = scaling.shape[1]
    black, factor = np.empty(columns, np.float32), np.empty(columns, np.float32)
    for x in range(columns):
        black[x], factor[x] = scaling[0, x % channels], scaling[1, x % channels]
    lines = np.empty((taps, columns), np.float32)  # row r of the image is line r % taps
    sums = np.empty((_BLOCK, columns), np.float32)
    out = np.empty((columns, size), np.float32)
    following = at[0]
    for start in range(0, size, _BLOCK):
        count = min(_BLOCK, size - start)
        for y in range(count):
            row, total = at[start + y], sums[y]
            for coming in range(max(following, row), min(row + taps, len(image))):
                line, values = lines[coming % taps], image[coming, first : first + columns]
                for x in range(columns):
                    level = (np.float32(values[x]) - black[x]) * factor[x]
                    line[x] = min(max(level, np.float32(0)), np.float32(255))
            following = max(following, row + taps)
            total[:] = 0
            for tap in range(min(taps, len(image) - row)):
                weight, line = weights[start + y, tap], lines[(row + tap) % taps]
                for x in range(columns):
                    total[x] += weight * line[x]
        for x in range(columns):
            for y in range(count):
                out[x, start + y] = sums[y, x]
    return out


@compiled("f4[:, ::1](f4[:, ::1], i8, i8, i8[::1], f4[:, ::1])")
def _along(lines, channels, first, at, weights):
    """Sums along the rows: float32[S * C, S] of ``lines``, float32[columns, S], whose pixels count from ``first``."""
    size, taps = weights.shape
    out = np.zeros((size * channels, size), np.float32)
    for x in range(size):
        for tap in range(taps):
            weight, pixel = weights[x, tap], (at[x] - first + tap) * channels
            if weight == 0 or pixel >= len(lines):
                continue
            for channel in range(channels):
                total, line = out[x * channels + channel], lines[pixel + channel]
                for y in range(size):
                    total[y] += weight * line[y]
    return out


@compiled("void(u2[:, ::1], f4[:, ::1], f8, f8, f8, f8, f4[::1], b1, b1, b1, f4[:, ::1])")
def make_view(image, scaling, top, left, height, width, gauss, flip, vertical_flip, transpose, out):
    """Scale, crop, resize, blur, flip and transpose.

    Args:
        image: uint16[H, W * C], of C = 1 or 3 channels.
        scaling: float32[2, C]: per channel the value that becomes 0, and the levels of a step of 1 from there;
            levels are clamped to [0, 255].
        top: of the crop, in pixels of the image.
        left: of the crop, in pixels of the image.
        height: of the crop, in pixels of the image.
        width: of the crop, in pixels of the image.
        gauss: float32[2 * radius + 1], the blur's window; one number: no blur.
        flip: whether left and right are exchanged.
        vertical_flip: whether top and bottom are.
        transpose: whether rows and columns are, after the flips.
        out: float32[S, S * C], written to: levels; S is more than the blur's radius.
    """
    size, channels = len(out), scaling.shape[1]
    pixels = image.shape[1] // channels
    down_at, down = exact_bands(top, height, len(image), size, gauss)
    along_at, along = exact_bands(left, width, pixels, size, gauss)
    first = along_at[0]
    columns = min(along_at[size - 1] + along.shape[1], pixels) - first
    lines = _down(image, scaling, first * channels, columns * channels, down_at, down)
    levels = _along(lines, channels, first, along_at, along)
    for y in range(size):
        for x in range(size):
            row, place = size - 1 - y if vertical_flip else y, size - 1 - x if flip else x
            if transpose:
                row, place = place, row
            for channel in range(channels):
                out[row, place * channels + channel] = levels[x * channels + channel, y]
