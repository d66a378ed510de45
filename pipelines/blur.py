"""The Gaussian blur's window, the same numbers for every backend."""

from __future__ import annotations

import numpy as np

from pipelines.views import blur_radius

NONE = np.ones(1, dtype=np.float32)
"""The window that leaves a view as it is."""


def gaussian(sigma: float) -> np.ndarray:
    """float32[2 * radius + 1]: samples of the Gaussian at whole pixels, normalised to sum 1."""
    radius = blur_radius(sigma)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-(offsets**2) / (2 * float(sigma) ** 2))
    return (weights / weights.sum()).astype(np.float32)
