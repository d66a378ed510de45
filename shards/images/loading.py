"""The pixels of an image file: its size within the limits, its data in full, and decoded by Pillow."""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator

from PIL import Image, ImageChops, JpegImagePlugin

from shards.images.blank import single_colour
from shards.images.causes import Rejected
from shards.images.colour import Conversion, conversion, to_srgb
from shards.images.convert import orientation, to_8_bits, widened
from shards.images.formats import FORMATS
from shards.images.jpeg import (
    MAX_BLOCKS_OF_SCANS,
    MAX_SCANS,
    Header,
    end_of_image,
    holds_all_blocks,
    rewritten,
    scans,
)
from shards.images.options import MIN_SIDE, EncodeOptions
from shards.images.plugins import Decoded
from shards.images.png import SIGNATURE, essential
from shards.images.png import colour_profile as profile_of_png
from shards.images.png import read_header as header_of_png
from shards.images.tiff import Tiff, read_tiff

_JPEG = ("JPEG", "MPO")  # Pillow's name for a JPEG that a second picture follows, as from phones and 3D cameras
_ALPHA_OFTEN_UNUSED = ("BMP", "DIB", "ICO", "DDS", "TIFF")


def target_size(width: int, height: int, options: EncodeOptions) -> tuple[int, int]:
    """Final width and height, before rotation; Rejected if the size is outside the limits."""
    short = min(width, height)
    least = max(options.min_side, MIN_SIDE)
    if short < least:
        raise Rejected(f"too small: {width} x {height} pixels, under {least} on a side")
    if options.max_aspect is not None and max(width, height) > options.max_aspect * short:
        raise Rejected(f"too long: {width} x {height} pixels, over {options.max_aspect:g} to 1")
    resize = options.resize
    if width * height > options.max_pixels:
        raise Rejected(f"too large: {width} x {height} pixels, over {options.max_pixels:,} in all")
    if resize is not None and short > resize:
        width, height = round(width * resize / short), round(height * resize / short)
    if max(width, height) > options.max_side:
        raise Rejected(f"too large: {width} x {height} pixels, over {options.max_side:,} on a side")
    return width, height


def whole(data: bytes, header: Header) -> tuple[bytes, bool]:
    """The JPEG as every decoder reads it, and whether it has no more scans than encoders write.

    Without what follows its end marker: some decoders look for the marker at the end of the data.
    """
    # All three from the bytes alone, before a decoder spends time or memory on them.
    end, count = end_of_image(data, header), scans(data, header)
    if not end:
        raise Rejected("truncated: the JPEG has no end marker")
    if count > MAX_SCANS and header.progressive:
        raise Rejected(f"too large: a progressive JPEG of {count:,} scans, over {MAX_SCANS}")
    if count > header.usual_scans and count * header.blocks > MAX_BLOCKS_OF_SCANS:
        size = f"{header.width} x {header.height} pixels"
        raise Rejected(f"too large: a sequential JPEG of {count:,} scans of {size}; encoders write one or three")
    if not holds_all_blocks(data, header):
        raise Rejected(f"truncated: {len(data):,} bytes cannot hold {header.width} x {header.height} pixels")
    data = data[:end]
    return data if header.standard else rewritten(data), count <= header.usual_scans


def loaded(
    data: bytes,
    header: Header | None,
    options: EncodeOptions,
    found: Decoded | None,
    to: Conversion | None,
    least: tuple[int, int] | None = None,
) -> tuple[Image.Image, tuple[int, int], int]:
    """Pixels of mode RGB or L, the target size before rotation, and the orientation.

    A JPEG may be decoded at a lower resolution: at `least`, or, without it, as much as the target size needs.
    """
    if found is not None and isinstance(found.image, Image.Image):
        pixels = to_8_bits(to_srgb(found.image, profile_conversion(found.profile, options)))
        return pixels, target_size(*pixels.size, options), 1
    exif = None
    if data.startswith(SIGNATURE):
        to = profile_conversion(profile_of_png(data), options)
        data, exif = essential(data)
    tiff = read_tiff(data)
    if tiff is not None and tiff.spoilt:
        raise Rejected(f"unsupported: {tiff}")
    with _limited(options.max_pixels, tiff), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        size = image.size
        target = target_size(*size, options)
        if image.format in _JPEG and (least or target != size):
            # libjpeg's scaling is coarse: decode to at least twice the final size, and leave the rest to the filter.
            image.draft(image.mode, least or (2 * target[0], 2 * target[1]))
        image.load()
        turn = header.orientation if header is not None else orientation(exif or image.info.get("exif"))
        if image.format == "TIFF":  # Pillow rotates these itself, some versions while loading
            turn = 1
            if size[0] != size[1] and image.size == size[::-1]:
                target = target[1], target[0]
        profile = to or profile_conversion(image.info.get("icc_profile"), options)
        pixels = _converted(_corrected(image, data, tiff), profile)
        if tiff is not None and tiff.inverted:
            pixels = ImageChops.invert(pixels)
        return pixels, target, turn


def _corrected(image: Image.Image, data: bytes, tiff: Tiff | None) -> Image.Image:
    """A loaded image as its file has it, where Pillow has something else."""
    if tiff is not None:
        return widened(image)
    header = header_of_png(data)
    if header is None:
        return image
    key = image.info.get("transparency")
    # the colour is in the file's own bits, and the pixels are in 8
    if isinstance(key, tuple) and header.depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in key)
    elif isinstance(key, int) and image.mode == "L" and header.depth < 8:
        largest = (1 << header.depth) - 1
        image.info["transparency"] = (key & largest) * 255 // largest
    # grey and alpha of 16 bits, of which Pillow makes RGB and alpha
    return image.convert("LA") if (header.depth, header.colours) == (16, 4) else image


def decode_entropy(data: bytes, options: EncodeOptions) -> None:
    """Decode all of a JPEG's data at the lowest cost; OSError if some is missing, Rejected if it is blank."""
    # Pillow stumbles over some metadata, and parsing them takes longer than this copy.
    buffer = io.BytesIO(rewritten(data))
    with _limited(options.max_pixels):
        image = JpegImagePlugin.JpegImageFile(buffer)  # Image.open would search for further pictures (MPO)
    with image:  # outside of the lock: threads decode in parallel
        mode = image.mode if options.drop_blank else "L"  # two colours may be equally bright
        image.draft(mode, (max(1, image.width // 8), max(1, image.height // 8)))
        image.load()
        if options.drop_blank:
            refuse_blank(image)


_pillow = threading.RLock()


@contextlib.contextmanager
def _limited(max_pixels: int, tiff: Tiff | None = None) -> Iterator[None]:
    """Limit images within images (frames, icons) to `max_pixels` too, and silence Pillow's warnings.

    Planar TIFFs are decoded by libtiff, as Pillow's own decoder mixes up deep planes. All of these settings are global
    to the process, so threads take turns and restore them.
    """
    with _pillow, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, and of images that are large but permitted
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)  # Pillow raises at twice its limit
        try:
            with _by_libtiff() if tiff is not None and tiff.planar else contextlib.nullcontext():
                yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


@contextlib.contextmanager
def _by_libtiff() -> Iterator[None]:
    from PIL import TiffImagePlugin  # here: most packings have no TIFF, and every worker would import it

    before, TiffImagePlugin.READ_LIBTIFF = TiffImagePlugin.READ_LIBTIFF, True
    try:
        yield
    finally:
        TiffImagePlugin.READ_LIBTIFF = before


def profile_conversion(profile: bytes | None, options: EncodeOptions) -> Conversion | None:
    """How colours become sRGB; None if there is no profile, or it is not asked for."""
    return conversion(profile) if profile and options.srgb else None


def _converted(image: Image.Image, to: Conversion | None) -> Image.Image:
    """8-bit RGB or grey of a loaded image."""
    found = image.convert("RGB") if _alpha_unused(image) else image
    return to_8_bits(to_srgb(found, to))


def _alpha_unused(image: Image.Image) -> bool:
    """Whether the alpha plane is empty and the colours are not, in a format in which many programs leave it so."""
    if image.mode != "RGBA" or image.format not in _ALPHA_OFTEN_UNUSED:
        return False
    *colours, alpha = (image.getchannel(band).getextrema() for band in "RGBA")
    return alpha == (0, 0) and any(colour != (0, 0) for colour in colours)


def refuse_blank(pixels: Image.Image) -> None:
    """Raise Rejected if all pixels have one colour."""
    colour = single_colour(pixels)
    if colour:
        raise Rejected(f"blank: a single colour, {colour}")
