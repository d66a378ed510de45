"""A sample's image with 8 bits, for pages and pictures."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pipelines.deep import decode_16, levels
from shards import ShardSet
from shards.images.deep import require


def opened(shard_set: ShardSet, sample: int) -> Image.Image:
    """The image of a sample, opened; with 16 bits in RGB, scaled to 8 as the set's values are.

    Raises:
        SampleError, OSError, SyntaxError, ValueError: it cannot be read; the last three come from a damaged file.
        PackError: it has 16 bits, and the package that decodes them is not installed.
    """
    data = shard_set.read(sample)
    if shard_set.scaling is None:
        return Image.open(io.BytesIO(data))
    require("a picture of a 16-bit image")
    height, width = shard_set.sizes(np.array([sample]))[0].tolist()
    pixels = levels(decode_16(data, (height, width), 3), shard_set.scaling, 3)
    return Image.fromarray(pixels.round().astype(np.uint8))
