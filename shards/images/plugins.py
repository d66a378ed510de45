"""Formats that Pillow does not read, by the packages of the extra `formats`: HEIC, JPEG XL and camera raws.

All three decoders turn the image upright themselves, and an orientation in its EXIF data does not count any more.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from PIL import Image

from shards.images import jpeg_xl
from shards.images.causes import Rejected, needs_formats
from shards.images.formats import RAWS
from shards.images.tiff import Tiff

Fits = Callable[[int, int], object]
"""Raises Rejected for a width and height that are too large; called before the pixels are decoded."""
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_HEIF = (b"mif1", b"msf1")  # brands of any codec


@dataclass(frozen=True)
class Decoded:
    """What a package made of a file.

    Attributes:
        image: The first, or primary, picture, upright; or the bytes of the JPEG that it was made of without loss.
        profile: Its colour profile, if it has one.
        decoder: Name of the package.
    """

    image: Image.Image | bytes
    profile: bytes | None
    decoder: str


def kind_of(data: bytes, tiff: Tiff | None) -> str:
    """Which of these formats a file has, as `HEIC`, `JPEG XL` or `camera raw (Nikon NEF)`; empty for all others.

    Args:
        data: The file.
        tiff: Its layout, if it is a TIFF.
    """
    if data[4:8] == b"ftyp":
        length = min(int.from_bytes(data[:4], "big"), 256)
        brands = [data[place : place + 4] for place in (8, *range(16, length, 4))]
        if brands[0] in _HEIC or (brands[0] in _HEIF and any(brand in _HEIC for brand in brands)):
            return "HEIC"
    if jpeg_xl.is_one(data):
        return "JPEG XL"
    kind = tiff.raw if tiff is not None else ""
    kind = kind or next((name for name, begins in RAWS.items() if re.match(begins, data, re.DOTALL)), "")
    return f"camera raw ({kind})" if kind else ""


def decode(data: bytes, kind: str, fits: Fits) -> Decoded:
    """Decode a file of the kind that `kind_of` found.

    Raises:
        Rejected: The package is not installed, or it cannot decode the file.
    """
    name, function = {"HEIC": ("pillow_heif", _heic), "JPEG XL": ("pillow_jxl", _jpeg_xl)}.get(
        kind, ("rawpy", _camera_raw)
    )
    module = _module(name)
    if module is None:
        raise Rejected(needs_formats(kind))
    return function(module, data, kind, fits)


@cache
def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None


def _heic(pillow_heif: Any, data: bytes, kind: str, fits: Fits) -> Decoded:
    pillow_heif.options.DECODE_THREADS = 1  # each core has a worker of its own
    file = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=True)
    picture = file[file.primary_index]
    fits(*picture.size)
    return Decoded(picture.to_pillow(), picture.info.get("icc_profile"), "pillow-heif")


def _jpeg_xl(pillow_jxl: Any, data: bytes, kind: str, fits: Fits) -> Decoded:
    size = jpeg_xl.size(data)  # the package decodes everything at once
    if size is None:
        raise Rejected(f"damaged: begins as a {kind}, but its header cannot be read")
    fits(*size)
    try:
        is_jpeg, about, pixels, profile, _ = pillow_jxl.Decoder(num_threads=0)(data)
    except RuntimeError:  # whose text is advice on building the decoder
        raise Rejected("damaged: the data of the JPEG XL cannot be decoded") from None
    if is_jpeg:
        return Decoded(bytes(pixels), None, "pillow-jxl-plugin")
    if about.mode not in ("L", "LA", "RGB", "RGBA", "I;16", "F"):
        raise Rejected(f"unsupported: JPEG XL of mode {about.mode}")
    image = Image.frombytes(about.mode, (about.width, about.height), pixels)
    return Decoded(image, profile or None, "pillow-jxl-plugin")


def _camera_raw(rawpy: Any, data: bytes, kind: str, fits: Fits) -> Decoded:
    try:
        with rawpy.imread(io.BytesIO(data)) as raw:
            fits(raw.sizes.iwidth, raw.sizes.iheight)
            # dcraw's defaults (sRGB, brightness by the histogram), but with the white balance that the camera chose
            pixels = raw.postprocess(use_camera_wb=True, output_bps=8)
    except (rawpy.LibRawFileUnsupportedError, rawpy.NotSupportedError):
        raise Rejected(f"unsupported: {kind} that LibRaw does not know") from None
    except rawpy.LibRawError as error:
        text = error.args[0] if error.args else ""
        raise Rejected(f"damaged: {text.decode() if isinstance(text, bytes) else text} ({kind})") from None
    return Decoded(Image.fromarray(pixels), None, "rawpy")
