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

With `EncodeOptions.keep_16_bit` images of 16 bits become PNGs of 16 bits instead (`deep`), and others are left out.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, UnidentifiedImageError

from shards.images import deep
from shards.images.causes import Rejected, not_an_image, of_error
from shards.images.convert import TURNS
from shards.images.jpeg import Header, colour_profile, read_header, rewritten
from shards.images.loading import decode_entropy, loaded, profile_conversion, refuse_blank, target_size, whole
from shards.images.options import EncodeOptions
from shards.images.plugins import Decoded, decode, kind_of
from shards.images.resample import shrink
from shards.images.tiff import read_tiff
from shards.images.turbo import decoded

_PFM = b"Pf"  # a picture of floats, the only one that Pillow reads besides TIFF
_MODES = {1: "L", 3: "RGB", 4: "CMYK"}  # of JPEGs, by their number of components


@dataclass(frozen=True)
class Encoded:
    """A checked image.

    Attributes:
        data: A JPEG; with `keep_16_bit` a PNG of 16 bits.
        height: Pixels.
        width: Pixels.
        channels: 1 (grey) or 3.
        decoder: The package that decoded it, if it was not Pillow.
        reduced: Whether it had 16 bits, which `keep_16_bit` keeps, and has 8.
        own_range: Whether its floats or 32-bit values became 8 bits by a range that follows from themselves.
        several: Whether it is the first of a TIFF's pages, and the others are not packed.
        counts: With 16 bits, int64[C, 65536]: pixels of each value, per channel.
    """

    data: bytes
    height: int
    width: int
    channels: int
    decoder: str = ""
    reduced: bool = False
    own_range: bool = False
    several: bool = False
    counts: np.ndarray | None = None


def encode(data: bytes, options: EncodeOptions = EncodeOptions()) -> Encoded:  # noqa: B008 (immutable)
    """Check and, where needed, convert one image.

    Args:
        data: The image file.
        options: What is done to the image.

    Raises:
        Rejected: The image cannot be fully decoded, or the options leave it out.
    """
    if options.keep_16_bit:
        deep.codecs()  # here: a package that is missing is no image's fault
    with _rejecting(options, data):
        if not data:
            raise Rejected("empty: the file has 0 bytes")
        found = _deep(*deep.loaded(data, options), options) if options.keep_16_bit else _encode(data, options)
        tiff = read_tiff(data)
        return replace(found, several=True) if tiff is not None and tiff.several and not tiff.raw else found


def content(data: bytes, options: EncodeOptions) -> bytes:
    """What makes a file the same image as another: its bytes, of a JPEG without what follows its end.

    Raises:
        Rejected: The image is left out in any case.
    """
    if options.keep_16_bit:
        return data
    with _rejecting(options, data):
        header = read_header(data)
        return data if header is None or header.unsupported else whole(data, header)[0]


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
        if options.keep_16_bit:
            pixels, _, turned = deep.loaded(data, options)
            if options.drop_blank:
                deep.refuse_blank(pixels)
            return deep.in_8_bits(deep.upright(pixels, turned)), *pixels.shape[:2]
        data, header, found = _opened(data, options)
        to = None
        if header is not None:
            if header.unsupported:
                raise Rejected(f"unsupported: {header.unsupported}")
            target_size(header.width, header.height, options)
            to = profile_conversion(colour_profile(data), options)
            data = rewritten(whole(data, header)[0])
        pixels, _, turned = loaded(data, header, options, found, to, (least, least))
        width, height = pixels.size if header is None else (header.width, header.height)
        if options.drop_blank:
            refuse_blank(pixels)
        turn = TURNS.get(turned)
        return pixels if turn is None else pixels.transpose(turn), height, width


def encode_pixels(image: Image.Image, options: EncodeOptions = EncodeOptions()) -> Encoded:  # noqa: B008 (immutable)
    """Encode an image in memory, of mode RGB or L, as the pixels of a file are encoded.

    Raises:
        Rejected: The image is too small or too large.
    """
    with _rejecting(options):
        return _finished(image, target_size(*image.size, options), 1, options)


def encode_pixels_16(pixels: np.ndarray, options: EncodeOptions) -> Encoded:
    """Encode uint16 [H, W] or [H, W, 3] in memory, as the pixels of a file are with `keep_16_bit`.

    Raises:
        Rejected: The image is too small or too large, or blank.
    """
    height, width = pixels.shape[:2]
    with _rejecting(options):
        return _deep(pixels, target_size(width, height, options), 1, options)


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


def _deep(pixels: np.ndarray, target: tuple[int, int], turned: int, options: EncodeOptions) -> Encoded:
    pixels = deep.finished(pixels, target, turned, options)
    counts = deep.counts(pixels)
    height, width = pixels.shape[:2]
    return Encoded(deep.png(pixels), height, width, len(counts), deep.DECODER, counts=counts)


def _encode(data: bytes, options: EncodeOptions) -> Encoded:
    data, header, found = _opened(data, options)
    encoded = _encoded(data, header, found, options)
    if found is not None:
        return replace(encoded, decoder=found.decoder)
    if header is not None:
        return encoded
    tiff = read_tiff(data)
    wide = data.startswith(_PFM) if tiff is None else tiff.bits > 16
    return replace(encoded, reduced=deep.is_deep(data, tiff), own_range=wide)


def _opened(data: bytes, options: EncodeOptions) -> tuple[bytes, Header | None, Decoded | None]:
    """The JPEG, if the file is one or was made of one without loss, and its header; and what a package decoded."""
    header = read_header(data)
    kind = kind_of(data, read_tiff(data)) if header is None else ""
    if not kind:
        return data, header, None
    found = decode(data, kind, lambda width, height: target_size(width, height, options))
    if isinstance(found.image, bytes):
        return found.image, read_header(found.image), found
    return data, None, found


def _encoded(data: bytes, header: Header | None, found: Decoded | None, options: EncodeOptions) -> Encoded:
    to = None
    if header is not None:
        if header.unsupported:
            raise Rejected(f"unsupported: {header.unsupported}")
        target = target_size(header.width, header.height, options)
        to = profile_conversion(colour_profile(data), options)
        data, usual = whole(data, header)
        as_it_is = header.plain and header.orientation == 1 and target == (header.width, header.height)
        in_srgb = to is None or to.idle or to.mode != _MODES.get(header.components)  # such a profile is ignored
        if usual and as_it_is and in_srgb:
            if options.check or options.drop_blank:
                decode_entropy(data, options)
            return Encoded(data, header.height, header.width, header.components)
        data = rewritten(data)
        if in_srgb and target != (header.width, header.height):
            pixels = decoded(data, header, (2 * target[0], 2 * target[1]))
            if pixels is not None:
                if options.drop_blank:
                    refuse_blank(Image.fromarray(pixels))
                return _saved(shrink(pixels, target), header.orientation, options)
    return _finished(*loaded(data, header, options, found, to), options)


def _finished(pixels: Image.Image, target: tuple[int, int], turned: int, options: EncodeOptions) -> Encoded:
    """The JPEG at the target size, which is that before rotation."""
    if options.drop_blank:
        refuse_blank(pixels)
    if pixels.size != target:
        pixels = shrink(np.asarray(pixels), target)
    return _saved(pixels, turned, options)


def _saved(pixels: Image.Image, turned: int, options: EncodeOptions) -> Encoded:
    turn = TURNS.get(turned)
    if turn is not None:
        pixels = pixels.transpose(turn)
    pixels.info = {}  # no metadata for the encoder to pick up
    buffer = io.BytesIO()
    pixels.save(buffer, "JPEG", quality=options.quality)
    return Encoded(buffer.getvalue(), pixels.height, pixels.width, len(pixels.getbands()))
