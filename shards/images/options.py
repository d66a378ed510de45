"""Options of the treatment of each image, and its limits."""

from __future__ import annotations

from dataclasses import dataclass

MAX_FILE = 1 << 30  # bytes; a larger file is not a photograph
MIN_SIDE = 8  # pixels; smaller images are tracking pixels, not photographs
MAX_PIXELS = 178_956_970  # the most that Pillow opens by default: 512 MiB of RGB
MAX_SIDE = 65_500  # libjpeg's limit
VALUES_16 = 1 << 16  # that a channel of 16 bits can have


@dataclass(frozen=True)
class EncodeOptions:
    """What is done to each image; all of it affects the bytes.

    Attributes:
        resize: Shrink the short side to this many pixels; smaller images are not enlarged. None: never shrink.
        quality: JPEG quality, 1 to 95, of re-encoded images.
        max_side: Limit of the longer side in pixels, after `resize`; larger images are left out.
        max_pixels: Limit of the number of pixels, before `resize`; larger images are left out.
        check: Decode JPEGs that pass through unchanged, so that damaged ones are left out.
        min_side: Leave out images whose shorter side, before `resize`, has fewer pixels.
        max_aspect: Leave out images whose longer side is more than this many times the shorter one. None: no limit.
        drop_blank: Leave out images of a single colour.
        srgb: Convert images with a colour profile to sRGB; JPEGs with another profile are then re-encoded.
        keep_16_bit: Pack PNGs and TIFFs of 16 bits as 16-bit PNGs, without loss, and nothing else; see `deep`.
    """

    resize: int | None = None
    quality: int = 90
    max_side: int = MAX_SIDE
    max_pixels: int = MAX_PIXELS
    check: bool = True
    min_side: int = MIN_SIDE
    max_aspect: float | None = None
    drop_blank: bool = False
    srgb: bool = False
    keep_16_bit: bool = False
