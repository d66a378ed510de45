"""Shrinking with a Lanczos filter, as two banded matrix products.

The filter is Pillow's (three lobes, stretched by the ratio of the sizes, cut at the border), and so is the result
up to rounding, in about half the time: the taps of 16 neighbouring outputs form a small dense matrix, which BLAS
multiplies with whole rows.

Both products are exact. Taps are integers over 4,096 and what is kept between the two passes integers over 4, so
every partial sum is an integer below 2**24, which float32 holds. The bytes therefore depend neither on the order in
which a BLAS adds nor on the machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_LOBES = 3
_TAPS = 4096.0  # taps are integers over this
_BETWEEN = 4.0  # and values between the passes integers over this
_BLOCK = 16  # outputs computed together


@dataclass(frozen=True)
class Block:
    """Taps of neighbouring outputs: `taps` float32[stop - start, high - low] maps inputs low..high to them."""

    start: int
    stop: int
    low: int
    high: int
    taps: NDArray[np.float32]


def shrink(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Image of modes L or RGB (8 bits a channel) at `size`, width and height in pixels, each no larger than now."""
    planes = [Image.fromarray(_shrink_plane(np.asarray(plane), size)) for plane in image.split()]
    return planes[0] if len(planes) == 1 else Image.merge(image.mode, planes)


def _shrink_plane(plane: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """uint8[H, W] to uint8[height, width]: rows first, then columns."""
    width, height = size
    rows = np.empty((height, plane.shape[1]), np.float32)
    for block in blocks(plane.shape[0], height):
        inputs = plane[block.low : block.high].astype(np.float32)
        np.matmul(block.taps, inputs, out=rows[block.start : block.stop])
    rows *= _BETWEEN / _TAPS
    np.rint(rows, out=rows)
    result = np.empty((height, width), np.float32)
    for block in blocks(plane.shape[1], width):
        result[:, block.start : block.stop] = rows[:, block.low : block.high] @ block.taps.T
    result *= 1 / (_BETWEEN * _TAPS)
    np.rint(result, out=result)
    return np.clip(result, 0, 255, out=result).astype(np.uint8)


@lru_cache(maxsize=256)
def blocks(inputs: int, outputs: int) -> tuple[Block, ...]:
    """The filter from `inputs` to `outputs` values along one axis, as blocks of taps over 4,096."""
    scale = inputs / outputs
    centres = (np.arange(outputs) + 0.5) * scale
    first = np.floor(centres - _LOBES * scale + 0.5).astype(np.int64)
    places = first[:, None] + np.arange(math.ceil(2 * _LOBES * scale) + 1)
    x = (places + 0.5 - centres[:, None]) / scale
    inside = (np.abs(x) < _LOBES) & (places >= 0) & (places < inputs)
    taps = np.where(inside, np.sinc(x) * np.sinc(x / _LOBES), 0.0)
    taps = np.rint(taps * (_TAPS / taps.sum(axis=1, keepdims=True)))
    largest = taps.argmax(axis=1)
    taps[np.arange(outputs), largest] += _TAPS - taps.sum(axis=1)  # so that an even surface stays as it is
    return tuple(_block(taps, places, start, inputs) for start in range(0, outputs, _BLOCK))


def _block(taps: NDArray, places: NDArray, start: int, inputs: int) -> Block:
    """The part of the filter for _BLOCK outputs from `start`, as a dense matrix."""
    part, at = taps[start : start + _BLOCK], places[start : start + _BLOCK]
    origin, end = int(at[0, 0]), int(at[-1, -1]) + 1
    dense = np.zeros((len(at), end - origin), np.float32)
    dense[np.arange(len(at))[:, None], at - origin] = part
    low, high = max(origin, 0), min(end, inputs)
    return Block(start, start + len(at), low, high, np.ascontiguousarray(dense[:, low - origin : high - origin]))
