"""A PNG's chunks, read without decoding: those that its pixels depend on, and its EXIF data.

Decoders limit the size of text and profiles, and some of them check their checksums. None of it changes a pixel, so the
decoder gets the PNG without it. As in libpng, ancillary chunks with a wrong checksum do not count, nor does a
transparency of another length than a colour's; critical chunks are left to the decoder.
"""

from __future__ import annotations

import binascii
import zlib
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KNOWN = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # of the kinds of colours without a palette
_KEYS = {0: 2, 2: 6}  # bytes of the colour that is transparent, of those that can have one
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of Adam7: the first pixel's x and y, and the steps."""
_PROFILES = (b"Raw profile type exif", b"Raw profile type APP1")  # text chunks in which ImageMagick keeps EXIF data
_MOST_OF_PROFILE = 1 << 24  # bytes of a colour profile; those of printers have megabytes
_MAX_PROFILE = 1 << 20  # bytes of hexadecimal digits; the orientation is among the first


class Header(NamedTuple):
    """A PNG's first chunk: sides in pixels, bits of a channel, kind of colours, and whether it is in Adam7's order."""

    width: int
    height: int
    depth: int
    colours: int
    interlaced: bool


def read_header(data: bytes) -> Header | None:
    """The header of a PNG; None if it is not one, or has none."""
    if not data.startswith(SIGNATURE) or data[12:16] != b"IHDR" or len(data) < 33:
        return None
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    return Header(width, height, data[24], data[25], bool(data[28]))


def plain_16(data: bytes, header: Header) -> bytes:
    """A PNG of 16 bits with header, transparency and pixels alone, which are complete and undamaged.

    A decoder need not be robust then, nor free of leaks when it fails.

    Raises:
        ValueError: It is truncated or damaged; the message says which.
    """
    if header.colours not in _CHANNELS or data[26:28] != b"\0\0" or data[28] > 1:
        raise ValueError("damaged: the PNG's header is that of no 16-bit image")
    chunks = critical(data)
    sides = [(header.width, header.height)]
    if header.interlaced:
        sides = [(-(-(header.width - x) // dx), -(-(header.height - y) // dy)) for x, y, dx, dy in _PASSES]
    lines = [(2 * _CHANNELS[header.colours] * width, height) for width, height in sides if width > 0 and height > 0]
    size = sum((length + 1) * height for length, height in lines)
    reader = zlib.decompressobj()
    try:
        pixels = reader.decompress(chunks[b"IDAT"], size + 1)
        pixels += reader.decompress(reader.unconsumed_tail, 1)  # the checksum follows the last byte
    except zlib.error:
        raise ValueError("damaged: the PNG's pixels cannot be inflated") from None
    if len(pixels) < size:
        raise ValueError(f"truncated: the PNG has {len(pixels):,} of {size:,} bytes of pixels")
    if len(pixels) > size or not reader.eof:
        raise ValueError("damaged: the PNG has more pixels than its size")
    start = 0
    for length, height in lines:
        end = start + (length + 1) * height
        if max(pixels[start : end : length + 1]) > 4:
            raise ValueError("damaged: the PNG has a line of an unknown filter")
        start = end
    key = chunks.get(b"tRNS", b"")
    kept = [b"IHDR", *([b"tRNS"] if len(key) == _KEYS.get(header.colours) else []), b"IDAT", b"IEND"]
    return SIGNATURE + b"".join(_chunk(kind, chunks[kind]) for kind in kept)


def critical(data: bytes) -> dict[bytes, bytes]:
    """Content of the critical chunks and of the transparency, by name; ValueError if one is missing or damaged."""
    found: dict[bytes, bytes] = {}
    place, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        before, kind = kind, data[place + 4 : place + 8]
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if place + 12 > len(data) or end > len(data):
            raise ValueError("truncated: the PNG ends within a chunk")
        if not kind[0] & 0x20 or kind == b"tRNS":
            again = kind in found and not (kind == before == b"IDAT")
            if again or kind not in _KNOWN or not _sound(data, place, end):
                raise ValueError(f"damaged: the chunk of the PNG at byte {place:,}")
            found[kind] = found.get(kind, b"") + data[place + 8 : end - 4]
        place = end
    if b"IDAT" not in found:
        raise ValueError("truncated: the PNG has no pixels")
    return found


def _chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")


def essential(data: bytes) -> tuple[bytes, bytes | None]:
    """The PNG with its critical chunks and its transparency only, and its EXIF data, if any."""
    place, start, kept = len(SIGNATURE), 0, []
    exif = profile = None
    while place + 12 <= len(data):
        kind = data[place + 4 : place + 8]
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if end > len(data):
            break  # the decoder finds what is missing
        # Bit 5 of the first letter marks ancillary chunks.
        if kind[0] & 0x20 and not (kind == b"tRNS" and _is_key(data, place, end) and _sound(data, place, end)):
            kept.append(data[start:place])
            start = end
            if kind == b"eXIf" and _sound(data, place, end):
                exif = data[place + 8 : end - 4]
            elif kind in (b"tEXt", b"zTXt", b"iTXt") and data.startswith(_PROFILES, place + 8):
                profile = profile or _profile(kind, data[place + 8 : end - 4])
        place = end
        if kind == b"IEND":
            break
    if not kept:
        return data, None
    return b"".join((*kept, data[start:])), exif or profile


def colour_profile(data: bytes) -> bytes | None:
    """The ICC profile of a PNG; None if it has none, or a damaged one."""
    place = data.find(b"iCCP", 0, data.find(b"IDAT")) - 4
    end = place + 12 + int.from_bytes(data[max(place, 0) : place + 4], "big")
    if place < 0 or end > len(data) or not _sound(data, place, end):
        return None
    try:
        inflated = zlib.decompressobj()
        return inflated.decompress(data[place + 8 : end - 4].partition(b"\0")[2][1:], _MOST_OF_PROFILE)
    except zlib.error:
        return None


def _is_key(data: bytes, place: int, end: int) -> bool:
    """Whether a chunk has the length of the transparency of a PNG's kind of colours; a palette's has any."""
    colours = int.from_bytes(data[25:26], "big")  # of the header, which may be cut off
    return colours == 3 or end - place - 12 == _KEYS.get(colours)


def _sound(data: bytes, place: int, end: int) -> bool:
    return zlib.crc32(data[place + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")


def _profile(kind: bytes, content: bytes) -> bytes | None:
    """EXIF data of a text: a line with a name, one with the length, and lines of hexadecimal digits."""
    text = content.partition(b"\0")[2]
    try:
        if kind == b"iTXt":
            compressed, text = text[:1] == b"\1", text[2:].split(b"\0", 2)[2]
        else:
            compressed, text = kind == b"zTXt", text[kind == b"zTXt" :]
        if compressed:
            text = zlib.decompressobj().decompress(text, _MAX_PROFILE)
        digits = b"".join(text[:_MAX_PROFILE].split(b"\n", 3)[3].split())
        return binascii.unhexlify(digits[: len(digits) & ~1])
    except (IndexError, ValueError, zlib.error):
        return None
