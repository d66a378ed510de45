"""JPEG to pixels on the CPU, in full size or at a half, a quarter or an eighth of it."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from shards.images.memory import Memory

SHRINKS = (8, 4, 2)
"""Factors by which libjpeg-turbo can shrink an image in its inverse transform, the largest first."""


def decode(
    encoded: bytes,
    size: tuple[int, int] | None = None,
    shrink: int = 1,
    memory: Memory | None = None,
    channels: int = 3,
) -> np.ndarray:
    """Decode a JPEG without rotating it by its EXIF orientation.

    By libjpeg-turbo with the accurate transform and smooth chroma upsampling, so the pixels equal Pillow's.

    Args:
        encoded: the file.
        size: the height and width that it must have; required with ``shrink``.
        shrink: 1, or the factor by which the transform divides each side (2, 4 or 8), rounded up. Rare kinds of JPEG
            are decoded in full size all the same.
        memory: where the pixels are written, valid until this thread's next call; None for new memory.
        channels: 3, for red, green and blue, or 1 for the luma, which is the level of a grey image.

    Returns:
        uint8[H, W, channels], contiguous.

    Raises:
        ValueError: the bytes are not a decodable JPEG, or the size differs.
    """
    room = None if memory is None or size is None else memory.room("pixels", size[0] * size[1] * channels)
    # simplejpeg takes the smallest scale at which both sides reach these; libjpeg rounds scaled sides up
    height, width = (0, 0) if size is None or shrink == 1 else (-(-side // shrink) for side in size)
    try:
        pixels = simplejpeg.decode_jpeg(
            encoded, "GRAY" if channels == 1 else "RGB", min_height=height, min_width=width, buffer=room
        )
    except ValueError:
        pixels = _by_pillow(encoded, channels)
    if size is not None and pixels.shape[:2] not in ((height, width), tuple(size)):
        raise ValueError(f"is {pixels.shape[0]}x{pixels.shape[1]} pixels, but the index says {size[0]}x{size[1]}")
    return pixels


def _by_pillow(encoded: bytes, channels: int) -> np.ndarray:
    """Decode JPEGs of unusual sampling or with harmless faults, which packing accepts but simplejpeg does not."""
    try:
        with Image.open(io.BytesIO(encoded), formats=("JPEG",)) as image:
            return np.array(image.convert("L" if channels == 1 else "RGB")).reshape(image.height, image.width, channels)
    except UnidentifiedImageError:  # its own message names the object in memory
        raise ValueError("cannot be decoded: not a JPEG file") from None
    except MemoryError:  # the machine's fault; the image would be recorded as one that cannot be decoded
        raise
    except Exception as error:  # on damaged input Pillow's decoders raise exceptions of many kinds
        raise ValueError(f"cannot be decoded: {(str(error) or repr(error)).splitlines()[0]}") from None
