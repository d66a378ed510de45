"""Shrinking with a Lanczos filter, as two banded matrix products.

The filter is Pillow's (three lobes, stretched by the ratio of the sizes, truncated at the border), and so is the
result up to rounding, in about half the time: the taps of 16 neighbouring outputs form a small dense matrix, which
BLAS multiplies with whole rows.

Both products are exact. Taps are multiples of 1/4096 and the values between the two passes multiples of 1/4, so every
partial sum is an integer below 2**24 in these units, which float32 holds exactly. The bytes therefore depend neither
on the order in which a BLAS sums nor on the machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_LOBES = 3
_TAPS = 4096.0  # taps are multiples of 1 / this
_BETWEEN = 4.0  # and values between the passes multiples of 1 / this
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
    pixels = np.asarray(image)
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    width, height = size
    planes = _shrink_columns(_shrink_rows(pixels.reshape(len(pixels), -1), height), channels, width)
    bands = [Image.fromarray(plane) for plane in planes.reshape(channels, height, width)]
    return bands[0] if channels == 1 else Image.merge(image.mode, bands)


def _shrink_rows(pixels: NDArray[np.uint8], height: int) -> NDArray[np.float32]:
    """uint8[H, W * C] to float32[height, W * C], in units of 1 / `_BETWEEN`."""
    rows = np.empty((height, pixels.shape[1]), np.float32)
    for block in blocks(len(pixels), height):
        inputs = pixels[block.low : block.high].astype(np.float32)
        np.matmul(block.taps, inputs, out=rows[block.start : block.stop])
    rows *= _BETWEEN / _TAPS
    return np.rint(rows, out=rows)


def _shrink_columns(rows: NDArray[np.float32], channels: int, width: int) -> NDArray[np.uint8]:
    """float32[height, W * C] from `_shrink_rows` to uint8[C * height, width]: plane after plane."""
    planes = rows.reshape(len(rows), -1, channels).transpose(2, 0, 1)
    planes = np.ascontiguousarray(planes).reshape(channels * len(rows), -1)
    result = np.empty((len(planes), width), np.float32)
    for block in blocks(planes.shape[1], width):
        np.matmul(planes[:, block.low : block.high], block.taps.T, out=result[:, block.start : block.stop])
    result *= 1 / (_BETWEEN * _TAPS)
    np.rint(result, out=result)
    return np.clip(result, 0, 255, out=result).astype(np.uint8)


@lru_cache(maxsize=256)
def blocks(inputs: int, outputs: int) -> tuple[Block, ...]:
    """The filter from `inputs` to `outputs` values along one axis, as blocks of taps in units of 1/4096."""
    scale = inputs / outputs
    centres = (np.arange(outputs) + 0.5) * scale
    first = np.floor(centres - _LOBES * scale + 0.5).astype(np.int64)
    places = first[:, None] + np.arange(math.ceil(2 * _LOBES * scale) + 1)
    x = (places + 0.5 - centres[:, None]) / scale
    inside = (np.abs(x) < _LOBES) & (places >= 0) & (places < inputs)
    taps = np.where(inside, np.sinc(x) * np.sinc(x / _LOBES), 0.0)
    taps = np.rint(taps * (_TAPS / taps.sum(axis=1, keepdims=True)))
    largest = taps.argmax(axis=1)
    taps[np.arange(outputs), largest] += _TAPS - taps.sum(axis=1)  # taps sum to 1, so that a flat area keeps its value
    return tuple(_block(taps, places, start, inputs) for start in range(0, outputs, _BLOCK))


def _block(taps: NDArray, places: NDArray, start: int, inputs: int) -> Block:
    """The part of the filter for _BLOCK outputs from `start`, as a dense matrix."""
    part, at = taps[start : start + _BLOCK], places[start : start + _BLOCK]
    origin, end = int(at[0, 0]), int(at[-1, -1]) + 1
    dense = np.zeros((len(at), end - origin), np.float32)
    dense[np.arange(len(at))[:, None], at - origin] = part
    low, high = max(origin, 0), min(end, inputs)
    return Block(start, start + len(at), low, high, np.ascontiguousarray(dense[:, low - origin : high - origin]))
