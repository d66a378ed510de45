"""Colour profiles (ICC), applied: pixels of any profile to sRGB."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

_SAME = 2  # levels: an sRGB profile of other tables rounds otherwise


@dataclass(frozen=True)
class Conversion:
    """From a profile to sRGB.

    Attributes:
        mode: Mode of the images that it is for.
        transform: LittleCMS's.
        idle: Whether it changes nothing, as the profile is sRGB.
    """

    mode: str
    transform: Any
    idle: bool


def to_srgb(image: Image.Image, conversion: Conversion | None) -> Image.Image:
    """The image in sRGB, with its alpha and palette; itself, if the profile is for another kind of image."""
    if conversion is None or conversion.idle:
        return image
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    colours = image.convert(image.mode[:-1]) if alpha is not None else image
    if colours.mode != conversion.mode:
        return image
    from PIL import ImageCms

    found = ImageCms.applyTransform(colours, conversion.transform)
    assert found is not None
    if colours.mode == "L":  # grey stays grey
        found = found.convert("L")
    if alpha is not None:
        found.putalpha(alpha)
    return found


@lru_cache(maxsize=32)
def conversion(profile: bytes) -> Conversion | None:
    """The conversion of a profile, or None if it cannot be read, which browsers ignore, too."""
    from PIL import ImageCms  # here: it takes longer to import than a packing without profiles needs

    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(given.profile.xcolor_space.strip())  # pyright: ignore[reportAttributeAccessIssue]
        if mode is None:
            return None
        transform = ImageCms.buildTransform(
            given, ImageCms.createProfile("sRGB"), mode, "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )  # fmt: skip
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    if mode == "CMYK":
        return Conversion(mode, transform, idle=False)
    levels = np.arange(256, dtype=np.uint8)
    if mode == "RGB":
        levels = np.stack(np.meshgrid(*(levels[::17],) * 3), axis=-1).reshape(1, -1, 3)
    before = Image.fromarray(levels.reshape(1, -1) if mode == "L" else levels)
    after = ImageCms.applyTransform(before, transform)
    worst = np.abs(np.asarray(after, int) - np.asarray(before.convert("RGB"), int)).max()
    return Conversion(mode, transform, bool(worst <= _SAME))
