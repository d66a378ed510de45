"""16-bit images without loss: PNG and TIFF, grey or RGB, decoded, turned upright, shrunk, and encoded as PNG.

All pixels are uint16, [H, W] of grey images and [H, W, 3] of RGB. The decoders are libpng and libtiff, by the package
imagecodecs: Pillow keeps 8 bits of RGB. No colour profile is applied.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
from typing import Any

import numpy as np
from PIL import Image

from shards.errors import PackError
from shards.images.blank import single_colour
from shards.images.causes import Rejected, of_error
from shards.images.convert import orientation
from shards.images.formats import FORMATS
from shards.images.loading import target_size
from shards.images.options import VALUES_16, EncodeOptions
from shards.images.plugins import kind_of
from shards.images.png import SIGNATURE, Header, critical, essential, plain_16, read_header
from shards.images.resample import shrink_16
from shards.images.tiff import Tiff, damage, read_tiff

DECODER = "imagecodecs"
WHITE = VALUES_16 - 1
"""The largest value."""
_COLOURS = (0, 2)  # a PNG's kinds of colours without alpha: grey and RGB
_OF_8_BITS = frozenset(("JPEG", "MPO", "GIF", "BMP", "DIB", "WEBP", "QOI", "ICO", "ICNS", "PCX"))
_TRANSPARENT = "is a PNG with transparency"
_LEVEL = 3  # of zlib: higher ones save little of the noise in 16 bits, at several times the cost
REMEDY = "leave --keep-16-bit out to pack it with 8 bits"


def require(what: str = "--keep-16-bit") -> None:
    """Raise PackError if 16-bit images cannot be decoded here, for `what` they are needed."""
    if importlib.util.find_spec(DECODER) is None:
        raise PackError(f"{what} needs imagecodecs: pip install 'fastmoco[deep]'")


def codecs() -> Any:
    """The package that decodes and encodes them.

    Raises:
        ImportError: It is not installed.
    """
    return importlib.import_module(DECODER)


def is_deep(data: bytes, tiff: Tiff | None) -> bool:
    """Whether a file is a PNG or TIFF whose 16 bits can be kept."""
    header = read_header(data)
    return header.depth == 16 if header is not None else tiff is not None and tiff.deep


def loaded(data: bytes, options: EncodeOptions) -> tuple[np.ndarray, tuple[int, int], int]:
    """Pixels, the target size (width, height) before rotation, and the orientation, 1 to 8.

    Transparent pixels are blended with white.

    Raises:
        Rejected: It is no such image, or too large.
        UnidentifiedImageError: It is no image.
    """
    if data.startswith(SIGNATURE):
        return _of_png(data, options)
    tiff = read_tiff(data)
    if tiff is not None and not tiff.raw:
        return _of_tiff(data, tiff, options)
    kind = kind_of(data, tiff)
    if not kind:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            kind = str(image.format)
    if kind == "TIFF":
        raise Rejected("damaged: a TIFF without a size")
    what = "not 16 bits" if kind in _OF_8_BITS else "unsupported"  # others may have 16
    raise Rejected(f"{what}: {kind}, and only PNG and TIFF are taken; {REMEDY}")


def _of_png(data: bytes, options: EncodeOptions) -> tuple[np.ndarray, tuple[int, int], int]:
    header = read_header(data)
    if header is None or header.depth not in (1, 2, 4, 8, 16):
        raise Rejected("damaged: begins as a PNG, but its header cannot be read")
    if header.depth != 16:
        raise Rejected(f"not 16 bits: a PNG of {header.depth} bits; {REMEDY}")
    target = target_size(header.width, header.height, options)
    data, exif = essential(data)
    pixels = _png_pixels(data, header)
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        pixels = _on_white(pixels)
    return pixels, target, orientation(exif)


def _png_pixels(data: bytes, header: Header) -> np.ndarray:
    """Pixels, with alpha if it has transparency."""
    try:
        whole = plain_16(data, header)
    except ValueError as error:
        raise Rejected(str(error)) from None
    return codecs().png_decode(whole)


def _on_white(pixels: np.ndarray) -> np.ndarray:
    """Grey or RGB of pixels with alpha, the last channel; rounded, as 65,535 is odd without ties."""
    alpha = pixels[..., -1:].astype(np.int64)
    colours = pixels[..., :-1]
    if alpha.min() != WHITE:
        colours = (colours * alpha + WHITE * (WHITE - alpha) + WHITE // 2) // WHITE
    colours = colours.astype(np.uint16)
    return np.ascontiguousarray(colours[..., 0] if colours.shape[2] == 1 else colours)


def _of_tiff(data: bytes, tiff: Tiff, options: EncodeOptions) -> tuple[np.ndarray, tuple[int, int], int]:
    if not tiff.deep:
        what = "not 16 bits" if tiff.bits <= 8 else "unsupported"
        raise Rejected(f"{what}: {tiff}; --keep-16-bit takes grey or RGB of unsigned 16 bits, without alpha")
    target = target_size(tiff.width, tiff.height, options)
    if tiff.tile > options.max_pixels:  # of which the decoder has one in memory
        raise Rejected(f"too large: tiles of {tiff.tile:,} pixels, over {options.max_pixels:,} in all")
    cause = damage(data, tiff)
    if cause:
        raise Rejected(cause)
    try:
        pixels = codecs().tiff_decode(data, index=0)
    except IndexError:
        raise Rejected("damaged: the TIFF's directory is cut off, or cannot be read") from None
    except RuntimeError as error:  # of libtiff, perhaps without a text
        raise Rejected(of_error(error) if str(error) else "damaged: libtiff cannot decode the TIFF") from None
    size = (tiff.height, tiff.width)
    expected = size if tiff.samples == 1 else (3, *size) if tiff.planar else (*size, 3)
    if pixels.dtype != np.uint16 or pixels.shape != expected:
        raise Rejected(f"unsupported: {tiff} of the shape {list(pixels.shape)}, in place of {list(expected)}")
    if tiff.samples == 3 and tiff.planar:
        pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    if tiff.inverted:
        pixels = WHITE - pixels
    return pixels, target, tiff.orientation


def finished(pixels: np.ndarray, target: tuple[int, int], turned: int, options: EncodeOptions) -> np.ndarray:
    """The pixels at the target size, which is that before rotation, and upright."""
    if options.drop_blank:
        refuse_blank(pixels)
    if pixels.shape[1::-1] != target:
        pixels = shrink_16(pixels, target)
    return np.ascontiguousarray(upright(pixels, turned))


def upright(pixels: np.ndarray, turned: int) -> np.ndarray:
    """Pixels with an EXIF orientation (1 to 8; others are none) applied, as a view."""
    if turned in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if turned in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if turned in (2, 3, 6, 7) else pixels


def png(pixels: np.ndarray) -> bytes:
    """A PNG with a header, the pixels and an end, not interlaced."""
    return codecs().png_encode(pixels, level=_LEVEL)


def counts(pixels: np.ndarray) -> np.ndarray:
    """int64[C, 65536]: how many pixels have each value, per channel."""
    channels = pixels.reshape(-1, 1 if pixels.ndim == 2 else 3).T
    return np.stack([np.bincount(channel, minlength=VALUES_16) for channel in channels])


def in_8_bits(pixels: np.ndarray) -> Image.Image:
    """Mode L or RGB, with the darkest value of the image as black and its brightest as white.

    For comparisons of what images show: a camera may have used few of the 65,536 values.
    """
    low, high = int(pixels.min()), int(pixels.max())
    return Image.fromarray(((pixels - low).astype(np.uint32) * 255 // max(high - low, 1)).astype(np.uint8))


def refuse_blank(pixels: np.ndarray) -> None:
    """Raise Rejected if an image has a single colour: by `single_colour`, in relation to its own range."""
    if single_colour(in_8_bits(pixels)):
        middle = np.median(pixels.reshape(-1, 1 if pixels.ndim == 2 else 3), axis=0).astype(int).tolist()
        raise Rejected(f"blank: a single colour, {'grey' if pixels.ndim == 2 else 'RGB'} {', '.join(map(str, middle))}")


def decoded(data: bytes, width: int, height: int) -> np.ndarray:
    """Pixels of a PNG as `png` writes it.

    Raises:
        Rejected: It has another size or form, or cannot be decoded; the message is what is wrong with it.
    """
    header = _own_header(data, width, height)
    try:
        pixels = _png_pixels(data, header)
    except Rejected as rejected:
        raise Rejected(f"cannot be decoded: {rejected}") from None
    if pixels.ndim == 3 and pixels.shape[2] != 3:
        raise Rejected(_TRANSPARENT)
    return pixels


def inflated(data: bytes, width: int, height: int) -> np.ndarray:
    """The lines of a PNG as `png` writes it: the number of a filter, then filtered bytes; by libdeflate.

    Filters can be undone in a third of the time that libpng takes to inflate and to undo them.

    Returns:
        uint8[height, 1 + 2 * width * C].

    Raises:
        Rejected: As of `decoded`.
    """
    header = _own_header(data, width, height)
    length = 1 + 2 * width * (1 if header.colours == 0 else 3)
    try:
        chunks = critical(data)
        lines = codecs().deflate_decode(chunks[b"IDAT"], out=np.empty(height * length, np.uint8))
        if lines.size < height * length:
            plain_16(data, header)  # says how much of it is missing
    except ValueError as error:
        raise Rejected(f"cannot be decoded: {error}") from None
    except codecs().DeflateError:
        raise Rejected("cannot be decoded: damaged: the PNG's pixels cannot be inflated to its size") from None
    if b"tRNS" in chunks:
        raise Rejected(_TRANSPARENT)
    return lines.reshape(height, length)


def _own_header(data: bytes, width: int, height: int) -> Header:
    header = read_header(data)
    if header is None or header not in [Header(width, height, 16, colours, False) for colours in _COLOURS]:
        raise Rejected(f"is no 16-bit PNG of {width} x {height} pixels, grey or RGB and not interlaced")
    return header
