"""Images of 16 bits: from the files in a set to pixels, and their values in the levels of 8 bits, without rounding."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from pipelines.errors import PipelineError
from pipelines.kernels.png import unfilter
from shards.format.scaling import Scaling
from shards.images import deep
from shards.images.causes import Rejected


def decode_16(encoded: bytes, size: tuple[int, int], channels: int) -> np.ndarray:
    """Decode a PNG of 16 bits, as packing writes it, in threads at once.

    Args:
        encoded: the file.
        size: the height and width that it must have.
        channels: 3, or 1 where the image must be grey.

    Returns:
        uint16[H, W, 3] of an image with colours, else uint16[H, W, 1]; contiguous.

    Raises:
        ValueError: the bytes are no such PNG, or cannot be decoded.
        ImportError: imagecodecs is not installed.
    """
    height, width = size
    try:
        lines = deep.inflated(encoded, width, height)
    except Rejected as rejected:
        raise ValueError(str(rejected)) from None
    of_image = lines.shape[1] // (2 * width)
    if of_image > channels:
        raise ValueError("has colours, in a set of grey images")
    pixels = np.empty((height, width, of_image), np.uint16)
    if unfilter(lines, of_image, pixels.reshape(height, -1)) < height:
        raise ValueError("cannot be decoded: damaged: the PNG has a line of an unknown filter")
    return pixels


def check_scaling(scaling: Scaling | None, channels: int) -> None:
    """Raise PipelineError for the scaling of a set with colours where views have one channel."""
    if scaling is not None and len(scaling.low) > channels:
        raise PipelineError(
            f"scaling has {len(scaling.low)} channels, and one is asked for by mean and std: give that of a grey set"
        )


@lru_cache
def steps(scaling: Scaling, channels: int) -> np.ndarray:
    """float32[2, channels]: the value that becomes level 0, and by how many levels (of 255) the next ones differ."""
    low, high = (np.array(each, dtype=np.float64) for each in (scaling.low, scaling.high))
    return np.stack([np.broadcast_to(each, channels) for each in (low, 255 / (high - low))]).astype(np.float32)


def levels(pixels: np.ndarray, scaling: Scaling, channels: int) -> np.ndarray:
    """float32[H, W, channels], from 0 to 255, of uint16[H, W, channels or 1], which three channels repeat."""
    black, step = steps(scaling, channels)
    return ((pixels.astype(np.float32) - black) * step).clip(0, 255)
