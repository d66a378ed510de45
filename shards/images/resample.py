"""Shrinking with a Lanczos filter in integers.

The filter is Pillow's (three lobes, stretched by the ratio of the sizes, truncated at the border), and so is the
result up to rounding. Taps are multiples of 1/4096 and the values between the two passes multiples of 1/4; both fit
int16, and sums int32. So the bytes do not depend on the machine. Images of 16 bits need finer taps, and sums int64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.images.memory import Memory
from shards.images.options import VALUES_16
from shards.kernels.filters import RUN, STRIP, Filter, room

_LOBES = 3
_TAP_BITS = 12  # taps are multiples of 1 / 4096
_BETWEEN_BITS = 2  # and values between the passes multiples of 1 / 4
SHIFTS = _TAP_BITS - _BETWEEN_BITS, _TAP_BITS + _BETWEEN_BITS
"""By how many bits the sums of the two passes are divided."""
_FINE_BITS = 22  # of taps for 16 bits: two passes over 16 bits stay below 2 ** 62, with what negative taps add
_TILE = 8  # the result is written in squares of this side


_memory = Memory()


def shrink(pixels: NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    """An image of mode L or RGB at a smaller size.

    Args:
        pixels: uint8[H, W] or uint8[H, W, 3].
        size: Width and height in pixels, each no larger than now.
    """
    (rows, columns), (width, height) = pixels.shape[:2], size
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    along, down = lanczos(columns, width), lanczos(rows, height)
    if columns * channels < STRIP:
        pixels = np.pad(pixels.reshape(rows, -1), ((0, 0), (0, STRIP)))
        columns = -(-STRIP // channels)  # no more, or the last row would be read beyond its end
    counts = room(down.longest, columns, channels, along.pairs)
    working = [_memory.room(*of, np.int16) for of in zip(("pairs", "turned", "woven"), counts, strict=True)]
    numbers, padded = width * channels, len(down.at)
    stride = -(-numbers // _TILE) * _TILE
    levels = _memory.room("levels", (numbers + _TILE) * padded)
    result = _memory.room("result", padded * stride)
    filtered, laid_down = _functions()
    filtered(
        pixels.ctypes.data, pixels.strides[0], rows, columns, channels,
        down.at.ctypes.data, down.weights.ctypes.data, down.pairs, padded // RUN,
        along.at.ctypes.data, along.weights.ctypes.data, along.pairs, width,
        *SHIFTS, *(array.ctypes.data for array in working), levels.ctypes.data,
    )  # fmt: skip
    laid_down(levels.ctypes.data, numbers, padded, result.ctypes.data, stride)
    mode = "L" if channels == 1 else "RGB"
    return Image.frombytes(mode, size, result.data, "raw", mode, stride, 1)


@lru_cache(maxsize=1)
def _functions() -> list[Callable[..., None]]:
    from shards.kernels.filtering import filtering, laying_down  # here: loading LLVM takes a tenth of a second
    from shards.kernels.machine import compiled

    return compiled(partial(filtering, to_even=True), laying_down)


@lru_cache(maxsize=256)
def lanczos(inputs: int, outputs: int) -> Filter:
    """The filter from `inputs` to `outputs` values along one axis, in units of 1/4096."""
    return Filter.of(*_taps(inputs, outputs, _TAP_BITS))


def shrink_16(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint16 [H, W] or [H, W, 3] at `size`, width and height in pixels, each no larger than now.

    Taps are multiples of 1 / 2 ** 22, and only the result is rounded.
    """
    width, height = size
    sums = _weighted(_weighted(pixels, height).swapaxes(0, 1), width).swapaxes(0, 1)
    half = 1 << (2 * _FINE_BITS - 1)
    return ((sums + half) >> (2 * _FINE_BITS)).clip(0, VALUES_16 - 1).astype(np.uint16)


def _weighted(values: np.ndarray, outputs: int) -> np.ndarray:
    """int64[outputs, ...]: weighted sums along the first axis, in units of 1 / 2 ** 22 of those of `values`."""
    taps, places = _taps(len(values), outputs, _FINE_BITS)
    places = places.clip(0, len(values) - 1)  # taps beyond the border are 0
    result = np.zeros((outputs, *values.shape[1:]), np.int64)
    # one tap of all outputs at a time, which needs no memory for the others
    for weights, rows in zip(taps.astype(np.int64).T, places.T, strict=True):
        result += values[rows] * weights.reshape(-1, *[1] * (values.ndim - 1))
    return result


def _taps(inputs: int, outputs: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Taps in units of 1 / 2 ** bits, float64[outputs, N], and the places of the values that they weight, int64."""
    scale, one = inputs / outputs, 1 << bits
    centres = (np.arange(outputs) + 0.5) * scale
    first = np.floor(centres - _LOBES * scale + 0.5).astype(np.int64)
    places = first[:, None] + np.arange(math.ceil(2 * _LOBES * scale) + 1)
    x = (places + 0.5 - centres[:, None]) / scale
    inside = (np.abs(x) < _LOBES) & (places >= 0) & (places < inputs)
    taps = np.where(inside, np.sinc(x) * np.sinc(x / _LOBES), 0.0)
    taps = np.rint(taps * (one / taps.sum(axis=1, keepdims=True)))
    largest = taps.argmax(axis=1)
    taps[np.arange(outputs), largest] += one - taps.sum(axis=1)  # taps sum to 1, so that a flat area keeps its value
    return taps, places
