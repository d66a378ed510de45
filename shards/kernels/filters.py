"""The weights of a separable filter, and the memory that applying it takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Four vectors of sums each: independent additions that need not wait for each other, and few enough to stay in AVX2's
# 16 registers together with weights and values.
STRIP = 32
"""Numbers of a row that are summed at once; an image has at least as many in a row."""
RUN = 32
"""Rows of a block; a result has a multiple of it."""


@dataclass(frozen=True)
class Filter:
    """The sums along one axis: number i adds ``weights[i, k]`` times the value ``2 * at[i] + k``.

    Attributes:
        at: int64[n], ascending from 0, n a multiple of RUN.
        weights: int16[n, an even number]; zero where they meet values outside of the image.
        longest: pairs of values that a block of RUN sums reads at most.
    """

    at: NDArray[np.int64]
    weights: NDArray[np.int16]
    longest: int

    @property
    def pairs(self) -> int:
        """Pairs of values that a sum adds."""
        return self.weights.shape[1] // 2

    @staticmethod
    def of(weights: NDArray[np.floating], places: NDArray[np.int64]) -> Filter:
        """From the weights of each sum, whole numbers, and the values' places, which count where a weight is not 0."""
        count = len(weights)
        output, number = np.nonzero(weights)
        at = places[np.arange(count), (weights != 0).argmax(axis=1)] // 2
        place = places[output, number] - 2 * at[output]
        more = -count % RUN  # sums of nothing
        shorts = np.zeros((count + more, place.max() // 2 * 2 + 2), np.int16)
        shorts[output, place] = weights[output, number]
        at = np.pad(at, (0, more), "edge")
        ends = at.reshape(-1, RUN)[:, [0, -1]]
        return Filter(at, shorts, int(np.ptp(ends, axis=1).max()) + shorts.shape[1] // 2)


def room(longest: int, pixels: int, channels: int, along_pairs: int) -> tuple[int, int, int]:
    """Numbers of int16 that `pairs`, `turned` and `woven` of `shards.kernels.filtering` have room for.

    Args:
        longest: pairs of rows that a block's sums read at most.
        pixels: in a row.
        channels: of a pixel.
        along_pairs: pairs of pixels that a sum along the rows adds.
    """
    return (
        longest * 2 * STRIP,
        (pixels + 1) * channels * RUN,
        # beyond the last pixel, where weights are zero: only memory that can be read
        (pixels // 2 + 1 + along_pairs) * channels * 2 * RUN,
    )
