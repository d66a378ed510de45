"""Shrinking with a Lanczos filter in integers.

The filter is Pillow's (three lobes, stretched by the ratio of the sizes, truncated at the border), and so is the
result up to rounding. Taps are multiples of 1/4096 and the values between the two passes multiples of 1/4; both fit
int16, and sums int32. So the bytes do not depend on the machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.images.memory import Memory
from shards.kernels.filters import RUN, STRIP, Filter, room

_LOBES = 3
_TAP_BITS = 12  # taps are multiples of 1 / 4096
_BETWEEN_BITS = 2  # and values between the passes multiples of 1 / 4
SHIFTS = _TAP_BITS - _BETWEEN_BITS, _TAP_BITS + _BETWEEN_BITS
"""By how many bits the sums of the two passes are divided."""
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
        columns = STRIP
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
    scale, one = inputs / outputs, 1 << _TAP_BITS
    centres = (np.arange(outputs) + 0.5) * scale
    first = np.floor(centres - _LOBES * scale + 0.5).astype(np.int64)
    places = first[:, None] + np.arange(math.ceil(2 * _LOBES * scale) + 1)
    x = (places + 0.5 - centres[:, None]) / scale
    inside = (np.abs(x) < _LOBES) & (places >= 0) & (places < inputs)
    taps = np.where(inside, np.sinc(x) * np.sinc(x / _LOBES), 0.0)
    taps = np.rint(taps * (one / taps.sum(axis=1, keepdims=True)))
    largest = taps.argmax(axis=1)
    taps[np.arange(outputs), largest] += one - taps.sum(axis=1)  # taps sum to 1, so that a flat area keeps its value
    return Filter.of(taps, places)
