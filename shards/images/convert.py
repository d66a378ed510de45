"""Any image that Pillow decodes to upright 8-bit RGB or grey."""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image, ImageChops

ORIENTATION = 0x0112
BITS, PHOTOMETRIC = 258, 262  # a TIFF's BitsPerSample, and its PhotometricInterpretation, of which 0 is: white is zero
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BYTE_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
_SIZES = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4}  # bytes of EXIF's integers: BYTE, SHORT, LONG, and the signed ones
_BAND = 1 << 22  # pixels scaled to 8 bits at a time; in float64 they take 32 MiB


def orientation(exif: bytes | None) -> int:
    """EXIF orientation, 1 (upright) to 8; 1 if there is none or the EXIF data are damaged."""
    values = orientations(exif)
    return values[0][0] if values else 1


def orientations(exif: bytes | None) -> list[tuple[int, int]]:
    """Values of all orientation tags, 1 to 8: by the tag's type, and as a reader sees it that takes it for a SHORT.

    DALI's parser is such a reader. Only the first directory is searched: parsing all EXIF data would take ten times as
    long.
    """
    tiff = (exif or b"").removeprefix(b"Exif\0\0")
    order = _BYTE_ORDERS.get(tiff[:4])
    if order is None:
        return []
    start = int.from_bytes(tiff[4:8], order)
    count = int.from_bytes(tiff[start : start + 2], order)
    found: list[tuple[int, int]] = []
    # Entries of twelve bytes; a damaged count may lead beyond the data.
    for place in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        if int.from_bytes(tiff[place : place + 2], order) == ORIENTATION:
            size = _SIZES.get(int.from_bytes(tiff[place + 2 : place + 4], order), 0)
            value, short = (int.from_bytes(tiff[place + 8 : place + 8 + length], order) for length in (size, 2))
            found.append((value if value in TURNS else 1, short if short in TURNS else 1))
    return found


def upright_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an image in memory, with its EXIF orientation applied, if it has one."""
    return upright(image).convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """8-bit RGB or grey of an image in memory, with its EXIF orientation applied, if it has one."""
    image.load()
    turn = TURNS.get(turned(image))
    plain = to_8_bits(widened(image))
    if inverted(image):
        plain = ImageChops.invert(plain)
    return plain if turn is None else plain.transpose(turn)


def turned(image: Image.Image) -> int:
    """EXIF orientation of the pixels of a loaded image, 1 (upright) to 8."""
    return 1 if image.format == "TIFF" else orientation(image.info.get("exif"))  # Pillow turns TIFFs itself


def widened(image: Image.Image) -> Image.Image:
    """A loaded image; of a TIFF of 12 bits, which Pillow gives as values up to 4,095, one of 16."""
    if getattr(image, "tag_v2", {}).get(BITS) != (12,):
        return image
    values = np.asarray(image)
    return Image.fromarray(values << 4 | values >> 8)


def inverted(image: Image.Image) -> bool:
    """Whether 0 is white in a loaded image of more than 8 bits, of a TIFF; Pillow does not heed it."""
    return image.mode.startswith(("I", "F")) and getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0


def to_8_bits(image: Image.Image) -> Image.Image:
    """8-bit RGB of a decoded image; 8-bit grey if the image is grey, without colours and palette.

    Deep images are scaled to 8 bits: 16-bit ones by their full range, value / 257, 32-bit ones and floats beyond that
    range by their own minimum and maximum. Transparent pixels are blended with white.
    """
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        overlay = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(overlay, mask=overlay.getchannel("A"))
    mode = "L" if grey else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """8-bit grey of modes I;16 (and its byte orders), I and F; pixels of the value that is transparent are white."""
    pixels, key = np.asarray(image), image.info.get("transparency")
    rows = max(1, _BAND // image.width)
    bands = [slice(start, start + rows) for start in range(0, image.height, rows)]
    low = min(float(_finite(pixels[band]).min()) for band in bands)
    high = max(float(_finite(pixels[band]).max()) for band in bands)
    # A float image does not say which value is white: the first of 1, 255 and 65,535 that no pixel exceeds.
    if image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif image.mode == "F" and low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    result = np.empty(pixels.shape, np.uint8)
    for band in bands:
        # an image of one value has no range to divide by
        result[band] = np.rint((_finite(pixels[band]) - low) * (255 / max(high - low, 1e-12)))
        if key is not None:
            result[band][pixels[band] == key] = 255
    return Image.fromarray(result)


def _finite(pixels: np.ndarray) -> np.ndarray:
    """Pixels in float64; NaN and infinities become 0."""
    return np.nan_to_num(pixels.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
