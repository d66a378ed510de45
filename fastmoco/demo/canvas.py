"""The drawing surface of `fastmoco.demo.patterns`: coordinates, soft edges, random tables, noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

_TABLE = 64  # side of a random table: cells repeat after 64, more than an image ever shows


@dataclass(frozen=True)
class Canvas:
    """The drawing surface of one image.

    Attributes:
        u: float32[H, W], horizontal coordinate in pattern cells.
        v: float32[H, W], vertical coordinate in pattern cells.
        pixel: size of a pixel in pattern cells; the width over which edges are softened.
        rng: generator of the image's random numbers.
    """

    u: Array
    v: Array
    pixel: float
    rng: np.random.Generator

    def edge(self, inside: Array) -> Array:
        """Soft mask of `inside` > 0, where `inside` is a signed distance in cells."""
        return np.clip(inside / (1.5 * self.pixel) + 0.5, 0.0, 1.0)

    def table(self) -> Array:
        """A float32[64, 64] table of uniform numbers, one per cell."""
        return self.rng.random((_TABLE, _TABLE), dtype=np.float32)


def lookup(table: Array, i: NDArray, j: NDArray) -> Array:
    """The table's entry for integer cell indices, repeated beyond its border."""
    return table[j.astype(np.int32) % _TABLE, i.astype(np.int32) % _TABLE]


def value_noise(table: Array, u: Array, v: Array) -> Array:
    """Smooth noise in [0, 1]: table entries at integer points, smoothly interpolated."""
    i, j = np.floor(u), np.floor(v)
    a, b = u - i, v - j
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    low = lookup(table, i, j) * (1 - a) + lookup(table, i + 1, j) * a
    high = lookup(table, i, j + 1) * (1 - a) + lookup(table, i + 1, j + 1) * a
    return low * (1 - b) + high * b


def fractal_noise(canvas: Canvas, octaves: int) -> Array:
    """Sum of value noise at doubling frequencies, stretched to [0, 1]."""
    table = canvas.table()
    total = np.zeros_like(canvas.u)
    for octave in range(octaves):
        turn = 0.6 * octave  # so that the lattices of the octaves do not line up
        u = canvas.u * np.float32(np.cos(turn)) - canvas.v * np.float32(np.sin(turn))
        v = canvas.u * np.float32(np.sin(turn)) + canvas.v * np.float32(np.cos(turn))
        total += value_noise(table, u * 2**octave + 7 * octave, v * 2**octave + 13 * octave) / 2**octave
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(high - low, 1e-6)
