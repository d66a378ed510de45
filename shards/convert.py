"""Any image that Pillow decodes to upright 8-bit RGB, or grey where a JPEG was grey."""

from __future__ import annotations

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation(exif: bytes | None) -> int:
    """EXIF orientation, 1 (upright) to 8; 1 where there is none or the EXIF data are damaged."""
    if not exif:
        return 1
    parsed = Image.Exif()
    try:
        parsed.load(exif)
        value = parsed.get(ORIENTATION, 1)
    except Exception:  # Pillow's parser raises whatever the damage makes it raise
        return 1
    return value if value in TURNS else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of a decoded image.

    Deep images are scaled to 8 bits: 16-bit ones by 255 / 65535, 32-bit ones and floats that go beyond that
    range by their own minimum and maximum. Transparent pixels are laid over white.
    """
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        overlay = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(overlay, mask=overlay.getchannel("A"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """8-bit grey of modes I;16 (and its byte orders), I and F."""
    pixels = np.asarray(image).astype(np.float64)
    pixels[~np.isfinite(pixels)] = 0
    low, high = float(pixels.min()), float(pixels.max())
    if image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif image.mode == "F" and low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    scaled = (pixels - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))
