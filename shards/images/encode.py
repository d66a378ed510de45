"""From an image file's bytes to checked JPEG bytes and a size, or the reason to leave it out.

RGB and grey JPEGs that are upright and within `resize` pass through byte for byte, after all of their entropy-coded
data has been decoded once (at an eighth of the size, which skips the inverse transforms: these cannot fail). Headers
that not every decoder reads are rewritten without a change to the pixels.
Everything else is decoded to 8-bit RGB, or grey if it has no colours, and encoded as JPEG without metadata:

- the EXIF orientation is applied;
- transparency is blended with white;
- 16-bit and other deep images are scaled to 8 bits, not clipped;
- the first frame of animations and multi-page files is used;
- colour profiles are applied only where asked (`EncodeOptions.srgb`).
"""

from __future__ import annotations

import contextlib
import io
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image, ImageChops, ImageFile, JpegImagePlugin, UnidentifiedImageError

from shards.images.blank import single_colour
from shards.images.causes import Rejected, not_an_image, of_error
from shards.images.colour import Conversion, conversion, to_srgb
from shards.images.convert import TURNS, orientation, to_8_bits
from shards.images.formats import FORMATS
from shards.images.jpeg import (
    MAX_BLOCKS_OF_SCANS,
    MAX_SCANS,
    Header,
    colour_profile,
    end_of_image,
    holds_all_blocks,
    read_header,
    rewritten,
    scans,
)
from shards.images.options import MIN_SIDE, EncodeOptions
from shards.images.plugins import Decoded, decode, kind_of
from shards.images.png import SIGNATURE, essential
from shards.images.png import colour_profile as profile_of_png
from shards.images.resample import shrink
from shards.images.tiff import Tiff, read_tiff

_JPEG = ("JPEG", "MPO")  # Pillow's name for a JPEG that a second picture follows, as from phones and 3D cameras
_MODES = {1: "L", 3: "RGB", 4: "CMYK"}  # of JPEGs, by their number of components
_ALPHA_OFTEN_UNUSED = ("BMP", "DIB", "ICO", "DDS", "TIFF")


@dataclass(frozen=True)
class Encoded:
    """A checked JPEG: bytes, height and width in pixels, and the package that decoded it, if it was not Pillow."""

    jpeg: bytes
    height: int
    width: int
    decoder: str = ""


def encode(data: bytes, options: EncodeOptions = EncodeOptions()) -> Encoded:  # noqa: B008 (immutable)
    """Check and, where needed, convert one image.

    Args:
        data: The image file.
        options: What is done to the image.

    Raises:
        Rejected: The image cannot be fully decoded, or the options leave it out.
    """
    with _rejecting(options, data):
        if not data:
            raise Rejected("empty: the file has 0 bytes")
        return _encode(data, options)


def content(data: bytes, options: EncodeOptions) -> bytes:
    """What makes a file the same image as another: its bytes, of a JPEG without what follows its end.

    Raises:
        Rejected: The image is left out in any case.
    """
    with _rejecting(options, data):
        header = read_header(data)
        return data if header is None or header.unsupported else _whole(data, header)[0]


def reduced(data: bytes, options: EncodeOptions, least: int) -> tuple[Image.Image, int, int]:
    """An image as it is packed, of mode RGB or L and upright, but decoded at a lower cost; and its stored size.

    Args:
        data: The image file.
        options: What would be done to the image.
        least: Pixels that each side keeps, if it has as many.

    Returns:
        The pixels, and height and width in pixels before a rotation.

    Raises:
        Rejected: As `encode` would.
    """
    with _rejecting(options, data):
        data, header, found = _opened(data, options)
        to = None
        if header is not None:
            if header.unsupported:
                raise Rejected(f"unsupported: {header.unsupported}")
            _target(header.width, header.height, options)
            to = _conversion(colour_profile(data), options)
            data = rewritten(_whole(data, header)[0])
        pixels, _, turned = _loaded(data, header, options, found, to, (least, least))
        width, height = pixels.size if header is None else (header.width, header.height)
        if options.drop_blank:
            _refuse_blank(pixels)
        turn = TURNS.get(turned)
        return pixels if turn is None else pixels.transpose(turn), height, width


def encode_pixels(image: Image.Image, options: EncodeOptions = EncodeOptions()) -> Encoded:  # noqa: B008 (immutable)
    """Encode an image in memory, of mode RGB or L, as the pixels of a file are encoded.

    Raises:
        Rejected: The image is too small or too large.
    """
    with _rejecting(options):
        return _finished(image, _target(*image.size, options), 1, options)


def _refuse_blank(pixels: Image.Image) -> None:
    colour = single_colour(pixels)
    if colour:
        raise Rejected(f"blank: a single colour, {colour}")


@contextlib.contextmanager
def _rejecting(options: EncodeOptions, data: bytes = b"") -> Iterator[None]:
    """Turn the errors of decoders and encoders into the reason to leave an image out."""
    try:
        yield
    except Rejected:
        raise
    except UnidentifiedImageError:
        raise Rejected(not_an_image(data)) from None
    except Image.DecompressionBombError as error:
        pixels = int(re.findall(r"\d+", str(error))[0])  # Pillow has the number in the text only
        raise Rejected(f"too large: {pixels:,} pixels, over {options.max_pixels:,} in all") from None
    except MemoryError:
        raise Rejected("too large: not enough memory to decode it") from None
    except Exception as error:  # decoders raise any type on malformed input
        raise Rejected(of_error(error)) from None


def _encode(data: bytes, options: EncodeOptions) -> Encoded:
    data, header, found = _opened(data, options)
    encoded = _encoded(data, header, found, options)
    return encoded if found is None else replace(encoded, decoder=found.decoder)


def _opened(data: bytes, options: EncodeOptions) -> tuple[bytes, Header | None, Decoded | None]:
    """The JPEG, if the file is one or was made of one without loss, and its header; and what a package decoded."""
    header = read_header(data)
    kind = kind_of(data, read_tiff(data)) if header is None else ""
    if not kind:
        return data, header, None
    found = decode(data, kind, lambda width, height: _target(width, height, options))
    if isinstance(found.image, bytes):
        return found.image, read_header(found.image), found
    return data, None, found


def _encoded(data: bytes, header: Header | None, found: Decoded | None, options: EncodeOptions) -> Encoded:
    to = None
    if header is not None:
        if header.unsupported:
            raise Rejected(f"unsupported: {header.unsupported}")
        target = _target(header.width, header.height, options)
        to = _conversion(colour_profile(data), options)
        data, usual = _whole(data, header)
        as_it_is = header.plain and header.orientation == 1 and target == (header.width, header.height)
        in_srgb = to is None or to.idle or to.mode != _MODES.get(header.components)  # such a profile is ignored
        if usual and as_it_is and in_srgb:
            if options.check or options.drop_blank:
                _decode_entropy(data, options)
            return Encoded(data, header.height, header.width)
        data = rewritten(data)
    return _finished(*_loaded(data, header, options, found, to), options)


def _loaded(
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
        pixels = to_8_bits(to_srgb(found.image, _conversion(found.profile, options)))
        return pixels, _target(*pixels.size, options), 1
    exif = None
    if data.startswith(SIGNATURE):
        to = _conversion(profile_of_png(data), options)
        data, exif = essential(data)
    tiff = read_tiff(data)
    if tiff is not None and tiff.spoilt:
        raise Rejected(f"unsupported: {tiff}")
    with _limited(options.max_pixels, tiff), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        size = image.size
        target = _target(*size, options)
        if image.format in _JPEG and (least or target != size):
            # libjpeg's scaling is coarse: decode to at least twice the final size, and leave the rest to the filter.
            image.draft(image.mode, least or (2 * target[0], 2 * target[1]))
        image.load()
        turn = header.orientation if header is not None else orientation(exif or image.info.get("exif"))
        if image.format == "TIFF":  # Pillow rotates these itself, some versions while loading
            turn = 1
            if size[0] != size[1] and image.size == size[::-1]:
                target = target[1], target[0]
        pixels = _converted(image, to or _conversion(image.info.get("icc_profile"), options))
        if tiff is not None and tiff.inverted:
            pixels = ImageChops.invert(pixels)
        return pixels, target, turn


def _whole(data: bytes, header: Header) -> tuple[bytes, bool]:
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


def _target(width: int, height: int, options: EncodeOptions) -> tuple[int, int]:
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


def _decode_entropy(data: bytes, options: EncodeOptions) -> None:
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
            _refuse_blank(image)


def _conversion(profile: bytes | None, options: EncodeOptions) -> Conversion | None:
    return conversion(profile) if profile and options.srgb else None


def _converted(image: ImageFile.ImageFile, to: Conversion | None) -> Image.Image:
    """8-bit RGB or grey of a loaded image."""
    found = image.convert("RGB") if _alpha_unused(image) else image
    return to_8_bits(to_srgb(found, to))


def _alpha_unused(image: ImageFile.ImageFile) -> bool:
    """Whether the alpha plane is empty and the colours are not, in a format in which many programs leave it so."""
    if image.mode != "RGBA" or image.format not in _ALPHA_OFTEN_UNUSED:
        return False
    *colours, alpha = (image.getchannel(band).getextrema() for band in "RGBA")
    return alpha == (0, 0) and any(colour != (0, 0) for colour in colours)


def _finished(pixels: Image.Image, target: tuple[int, int], turned: int, options: EncodeOptions) -> Encoded:
    """The JPEG at the target size, which is that before rotation."""
    if options.drop_blank:
        _refuse_blank(pixels)
    if pixels.size != target:
        pixels = shrink(pixels, target)
    turn = TURNS.get(turned)
    if turn is not None:
        pixels = pixels.transpose(turn)
    pixels.info = {}  # no metadata for the encoder to pick up
    buffer = io.BytesIO()
    pixels.save(buffer, "JPEG", quality=options.quality)
    return Encoded(buffer.getvalue(), pixels.height, pixels.width)
