"""One image file's bytes to checked JPEG bytes and a size, or the reason to leave it out.

RGB and grey JPEGs that lie upright and within `resize` come out as they went in, byte for byte, after all of
their entropy-coded data has been decoded once (to an eighth of the size: that saves the inverse transforms,
which cannot fail). All else is decoded to 8-bit RGB and encoded as JPEG without metadata:

- the EXIF orientation is baked in;
- transparency is laid over white;
- 16-bit and other deep images are scaled to 8 bits, not clipped;
- of animations and multi-page files the first frame is taken;
- colour profiles are not applied.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass

from PIL import Image, ImageFile, UnidentifiedImageError

from shards.convert import TURNS, orientation, to_rgb
from shards.options import MIN_SIDE, EncodeOptions

# Formats with a signature. Those without one (TGA, SPIDER) take noise for images; EPS would start Ghostscript.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI", "ICO"),
    *("ICNS", "DDS", "PCX", "SGI", "PSD"),
)
_END = b"\xff\xd9"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF markers
_PLAIN_FRAMES = (0xC0, 0xC1, 0xC2)  # Huffman-coded baseline, extended, progressive: what every decoder reads
_NO_LENGTH = frozenset((0x01, *range(0xD0, 0xD9)))
_START_OF_SCAN = 0xDA


@dataclass(frozen=True)
class Encoded:
    """A checked JPEG: bytes, height and width in pixels."""

    jpeg: bytes
    height: int
    width: int


class Rejected(Exception):
    """An image to be left out; the text says why, as `cause: detail`."""


def encode(data: bytes, options: EncodeOptions = EncodeOptions()) -> Encoded:  # noqa: B008 (immutable)
    """Check and, where needed, convert one image.

    Args:
        data: The file's bytes.
        options: What is done to the image.

    Raises:
        Rejected: The image cannot be decoded whole, or is too small or too large.
    """
    if not data:
        raise Rejected("empty: the file has 0 bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata and of large, still permitted images
        try:
            return _encode(data, options)
        except Rejected:
            raise
        except UnidentifiedImageError:
            raise Rejected(_not_an_image(data)) from None
        except Image.DecompressionBombError as error:
            pixels = int(re.findall(r"\d+", str(error))[0])
            raise Rejected(f"too large: {pixels:,} pixels, over {options.max_pixels:,} in all") from None
        except MemoryError:
            raise Rejected("too large: not enough memory to decode it") from None
        except Exception as error:  # decoders raise whatever they like on hostile input
            raise Rejected(_cause(error)) from None


def _encode(data: bytes, options: EncodeOptions) -> Encoded:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        target = _target(*image.size, options)
        if image.format in ("JPEG", "MPO"):
            upright = orientation(image.info.get("exif")) == 1
            plain = image.mode in ("RGB", "L") and frame_type(data) in _PLAIN_FRAMES
            if upright and plain and target == image.size:
                return _passed_through(image, data)
            if target != image.size:
                # Decode to no less than twice the final size, so that the filter has the last word.
                image.draft(image.mode, (2 * target[0], 2 * target[1]))
        return _converted(image, target, options.quality)


def _target(width: int, height: int, options: EncodeOptions) -> tuple[int, int]:
    """Final width and height, before turning; Rejected where the size is beyond the limits."""
    short = min(width, height)
    if short < MIN_SIDE:
        raise Rejected(f"too small: {width} x {height} pixels, under {MIN_SIDE} on a side")
    resize = options.resize
    if width * height > options.max_pixels:
        raise Rejected(f"too large: {width} x {height} pixels, over {options.max_pixels:,} in all")
    if resize is not None and short > resize:
        width, height = round(width * resize / short), round(height * resize / short)
    if max(width, height) > options.max_side:
        raise Rejected(f"too large: {width} x {height} pixels, over {options.max_side:,} on a side")
    return width, height


def _passed_through(image: ImageFile.ImageFile, data: bytes) -> Encoded:
    width, height = image.size
    _decode_entropy(image)
    if not data.endswith(_END):
        # Something follows the image; decoders that look for the end marker would call it truncated.
        data = data[: data.rfind(_END) + 2]
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as trimmed:
            _decode_entropy(trimmed)
    return Encoded(data, height, width)


def _decode_entropy(image: ImageFile.ImageFile) -> None:
    """Decode all of a JPEG's data at the least cost; OSError where some is missing."""
    image.draft("L", (max(1, image.width // 8), max(1, image.height // 8)))
    image.load()


def _converted(image: ImageFile.ImageFile, target: tuple[int, int], quality: int) -> Encoded:
    width, height = image.size
    image.load()
    turn = TURNS.get(orientation(image.info.get("exif")))
    if image.format == "TIFF":  # Pillow turns these itself, some versions of it while loading
        turn = None
        if width != height and image.size == (height, width):
            target = target[1], target[0]
    grey = image.mode == "L" and image.format in ("JPEG", "MPO")
    pixels: Image.Image = image if grey else to_rgb(image)
    if pixels.size != target:
        pixels = pixels.resize(target, Image.Resampling.LANCZOS)
    if turn is not None:
        pixels = pixels.transpose(turn)
    clean = Image.new(pixels.mode, pixels.size)  # carries no metadata that the encoder could pick up
    clean.paste(pixels)
    buffer = io.BytesIO()
    clean.save(buffer, "JPEG", quality=quality)
    return Encoded(buffer.getvalue(), clean.height, clean.width)


def frame_type(data: bytes) -> int:
    """Second byte of a JPEG's SOF marker, which tells the coding process; 0 where none is found."""
    place = 2
    while 0 <= (place := data.find(b"\xff", place)) < len(data) - 4:
        marker = data[place + 1]
        if marker in _FRAMES:
            return marker
        if marker == _START_OF_SCAN:
            break
        if marker in (0x00, 0xFF):
            place += 1
        elif marker in _NO_LENGTH:
            place += 2
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return 0


def _not_an_image(data: bytes) -> str:
    """Cause for bytes that no decoder takes, told by what they begin with."""
    head = data[:512].lstrip()
    if data[:2] == b"\xff\xd8":
        return "damaged: begins as a JPEG, but its header cannot be read"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
        return "unsupported: HEIC"
    if data[:2] == b"\xff\x0a" or data[4:12] == b"JXL \r\n\x87\n":
        return "unsupported: JPEG XL"
    if re.match(rb"<(!doctype html|html|\?xml|head|body|svg)", head, re.IGNORECASE):
        return "not an image: HTML or XML"
    if not data.strip(b"\0"):
        return "not an image: zero bytes only"
    if re.fullmatch(rb"[\t\n\r\x20-\x7e\x80-\xff]*", head):
        return "not an image: text"
    return "not an image: no known format"


def _cause(error: Exception) -> str:
    text = _plain(error)
    if re.search("truncated|not enough|too short|[Ee]nd of|EOF|needed more|incomplete", text):
        return f"truncated: {text}"
    return f"damaged: {text or type(error).__name__}"


def _plain(error: Exception) -> str:
    """Message on one line and without addresses, so that it is the same in every run."""
    return re.sub(r"\s*(<[^<>]* at )?0x[0-9a-f]{6,}>?", "", " ".join(str(error).split()))[:300]
