"""Images without content: of a single colour."""

from __future__ import annotations

import numpy as np
from PIL import Image

LEVELS = 8  # of 255: noise and compression make smaller differences between the parts of an even surface
_PARTS = 16  # parts along a side whose mean colours are compared


def single_colour(pixels: Image.Image) -> str:
    """The colour of an image (mode RGB or L) whose parts all have the same; empty for any other image."""
    # means, so that the answer is the same for an image that was decoded at a lower resolution
    parts = np.asarray(pixels.resize((_PARTS, _PARTS), Image.Resampling.BOX)).reshape(_PARTS * _PARTS, -1).astype(int)
    if np.ptp(parts, axis=0).max() > LEVELS:
        return ""
    return f"{'grey' if parts.shape[1] == 1 else 'RGB'} {', '.join(map(str, np.median(parts, axis=0).astype(int)))}"
