"""What is done to each image, and the limits of what is packed."""

from __future__ import annotations

from dataclasses import dataclass

MIN_SIDE = 8  # pixels; smaller images are left out: tracking pixels, not photographs
MAX_PIXELS = 178_956_970  # as many as Pillow opens without an error: 512 MiB of RGB
MAX_SIDE = 65_500  # libjpeg's limit


@dataclass(frozen=True)
class EncodeOptions:
    """What is done to each image; all of it decides the bytes.

    Attributes:
        resize: Shorten the short side to this many pixels; smaller images stay as they are. None: never.
        quality: JPEG quality, 1 to 95, of images that have to be encoded again.
        max_side: Longest side in pixels, after `resize`, of an image that is packed.
        max_pixels: Most pixels, before `resize`, of an image that is packed.
        check: Decode the data of JPEGs that pass through, so that damaged ones are left out.
    """

    resize: int | None = None
    quality: int = 90
    max_side: int = MAX_SIDE
    max_pixels: int = MAX_PIXELS
    check: bool = True
