"""The lines of a 16-bit PNG without their filters (W3C PNG, section 9): sums of bytes that depend on their neighbours.

A byte depends on the one that is a pixel to the left, so nothing here is a vector; the two bytes of a value are made
side by side, and those to the left stay in registers.
"""

from __future__ import annotations

import numpy as np

from pipelines.kernels.bands import compiled

_NONE, _SUB, _UP, _AVERAGE, _PAETH = range(5)


@compiled("i8(i8, i8, i8)")
def _paeth(left, up, corner):
    """The neighbour that is nearest to ``left + up - corner``."""
    of_left, of_up, of_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
    nearest = up if of_up <= of_corner else corner
    return left if of_left <= of_up and of_left <= of_corner else nearest


@compiled("void(i8, u1[::1], u2[::1], i8, i8, u2[::1])")
def _line(kind, line, above, channel, channels, out):
    """Write one channel of a line, of the filter ``kind``."""
    left_high = left_low = corner_high = corner_low = 0
    for x in range(channel, len(out), channels):
        high, low, up = np.int64(line[2 * x]), np.int64(line[2 * x + 1]), np.int64(above[x])
        up_high, up_low = up >> 8, up & 255
        if kind == _SUB:
            high, low = high + left_high, low + left_low
        elif kind == _UP:
            high, low = high + up_high, low + up_low
        elif kind == _AVERAGE:
            high, low = high + ((left_high + up_high) >> 1), low + ((left_low + up_low) >> 1)
        elif kind == _PAETH:
            high = high + _paeth(left_high, up_high, corner_high)
            low = low + _paeth(left_low, up_low, corner_low)
        left_high, left_low = high & 255, low & 255
        corner_high, corner_low = up_high, up_low
        out[x] = left_high << 8 | left_low


@compiled("i8(u1[:, ::1], i8, u2[:, ::1])")
def unfilter(lines, channels, out):
    """Write the pixels of all lines.

    Args:
        lines: uint8[H, 1 + W * channels * 2]: the number of a filter, then values, the high byte first.
        channels: of a pixel.
        out: uint16[H, W * channels], written to.

    Returns:
        The first line of an unknown filter, at which it stops; H if there is none.
    """
    above = np.zeros(out.shape[1], np.uint16)
    for y in range(len(lines)):
        kind, line = np.int64(lines[y, 0]), lines[y, 1:]
        if kind > _PAETH:
            return y
        for channel in range(channels):
            _line(kind, line, above, channel, channels, out[y])
        above = out[y]
    return len(lines)
