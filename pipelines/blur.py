"""The Gaussian blur's kernel, the same numbers for every backend, and its torch backend's implementation."""

from __future__ import annotations

import numpy as np

from pipelines.views import blur_radius


def gaussian(sigma: float) -> np.ndarray:
    """float32[2 * radius + 1]: samples of the Gaussian at whole pixels, normalised to sum 1."""
    radius = blur_radius(sigma)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-(offsets**2) / (2 * float(sigma) ** 2))
    return (weights / weights.sum()).astype(np.float32)


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur one view along its columns, then along its rows, in float32; edges mirror about the outermost pixels.

    The arithmetic is numpy's, whose ufuncs let other threads run; strips of rows keep it in the cache.

    Args:
        image: uint8[H, W, 3], contiguous, both sides greater than the kernel's radius.
        sigma: standard deviation in pixels, above 0.

    Returns:
        uint8[H, W, 3], rounded to nearest.
    """
    height, width, _ = image.shape
    weights = gaussian(sigma)
    radius = len(weights) // 2
    tall = np.empty((height + 2 * radius, width * 3), dtype=np.uint8)
    tall[radius : radius + height] = image.reshape(height, width * 3)
    tall[:radius] = tall[2 * radius : radius : -1]
    tall[radius + height :] = tall[height + radius - 2 : height - 2 : -1]
    out = np.empty_like(image)
    for top in range(0, height, _STRIP):
        count = min(_STRIP, height - top)
        strip = tall[top : top + count + 2 * radius].astype(np.float32)
        wide = np.empty((count, width + 2 * radius, 3), dtype=np.float32)
        middle = wide[:, radius : radius + width]
        _weighted([strip[i : i + count].reshape(middle.shape) for i in range(2 * radius + 1)], weights, middle)
        wide[:, :radius] = wide[:, 2 * radius : radius : -1]
        wide[:, radius + width :] = wide[:, width + radius - 2 : width - 2 : -1]
        flat = wide.reshape(count, -1)
        total = np.empty((count, width * 3), dtype=np.float32)
        _weighted([flat[:, 3 * i : 3 * (i + width)] for i in range(2 * radius + 1)], weights, total)
        total += np.float32(0.5)  # the conversion cuts off: half a level makes that rounding
        np.copyto(out[top : top + count], total.reshape(count, width, 3), casting="unsafe")
    return out


_STRIP = 56


def _weighted(shifts: list[np.ndarray], weights: np.ndarray, total: np.ndarray) -> None:
    """Write the sum of shifted images under symmetric weights to ``total``."""
    radius = len(weights) // 2
    np.multiply(shifts[radius], weights[radius], out=total)
    pair = np.empty(shifts[0].shape, dtype=np.float32)
    for i in range(radius):
        np.add(shifts[i], shifts[-1 - i], out=pair)
        np.multiply(pair, weights[i], out=pair)
        np.add(total, pair, out=total)
