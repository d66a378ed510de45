"""Damaged images through the packer's decoder path."""

from __future__ import annotations

import functools
import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.images.encode import Rejected, encode
from shards.images.jpeg import END, read_header
from shards.images.options import EncodeOptions
from tests.fuzz.faults import ACCEPTED, Field, Kind

CAUSE = re.compile(r"(empty|truncated|damaged|too small|too large|not an image|unsupported): \S.*")
OPTIONS = (EncodeOptions(), EncodeOptions(check=False), EncodeOptions(resize=16), EncodeOptions(max_pixels=4000))
_TURNED = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"


def _image(mode: str) -> Image.Image:
    """An image of 64 x 48 pixels."""
    y, x = np.mgrid[0:48, 0:64]
    pixels = np.stack([4 * x, 5 * y, 2 * (x + y)], axis=-1) + np.random.default_rng(0).integers(0, 24, (48, 64, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return Image.fromarray(pixels[..., 0].astype(np.uint16) << 7) if mode == "I;16" else image.convert(mode)


def _saved(kind: str, mode: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    _image(mode).save(buffer, kind, **options)
    return buffer.getvalue()


@functools.cache
def _jpegs() -> list[bytes]:
    plain = [_saved("JPEG", mode) for mode in ("RGB", "L", "CMYK")]
    return [*plain, _saved("JPEG", "RGB", progressive=True), _saved("JPEG", "RGB", exif=_TURNED)]


@functools.cache
def _pngs() -> list[bytes]:
    more = Image.new("RGBA", (64, 48))
    return [
        _saved("PNG", "RGB"), _saved("PNG", "P", transparency=3), _saved("PNG", "LA"), _saved("PNG", "I;16"),
        _saved("PNG", "RGBA", save_all=True, append_images=[more]), _saved("PNG", "1"), _interlaced(),
    ]  # fmt: skip


def _interlaced() -> bytes:
    """A PNG in Adam7 order, which Pillow does not write."""
    pixels = np.asarray(_image("RGB"))
    rows = b""
    for top, left, down, right in ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)):
        rows += b"".join(b"\0" + row.tobytes() for row in pixels[top::down, left::right])
    rows += b"".join(b"\0" + row.tobytes() for row in pixels[1::2])
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 64, 48, 8, 2, 0, 0, 1)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


@functools.cache
def _tiffs() -> list[bytes]:
    lzw, deflate = {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}
    more = [Image.new("RGB", (64, 48))]
    striped = [_saved("TIFF", mode, **lzw) for mode in ("RGB", "L", "P")]
    return [
        *striped, _saved("TIFF", "RGB"), _saved("TIFF", "RGBA", **deflate), _saved("TIFF", "I;16"),
        _saved("TIFF", "CMYK", **lzw), _saved("TIFF", "RGB", compression="jpeg"),
        _saved("TIFF", "RGB", save_all=True, append_images=more),
        _saved("TIFF", "1", compression="group4"), _saved("TIFF", "RGB", tiffinfo={274: 6}), _tiled(),
    ]  # fmt: skip


def _tiled() -> bytes:
    """A TIFF of 16 x 16 tiles, which Pillow does not write."""
    pixels = np.asarray(_image("RGB"))
    tiles = [pixels[y : y + 16, x : x + 16].tobytes() for y in range(0, 48, 16) for x in range(0, 64, 16)]
    entries = [
        (256, 3, 1, 64), (257, 3, 1, 48), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2), (277, 3, 1, 3),
        (322, 3, 1, 16), (323, 3, 1, 16), (324, 4, 12, 14), (325, 4, 12, 62),
    ]  # fmt: skip
    begin, directory = 116, 116 + sum(map(len, tiles))
    head = struct.pack("<2sHIHHH", b"II", 42, directory, 8, 8, 8)
    offsets = struct.pack("<12I", *(begin + 768 * number for number in range(12)))
    lengths = struct.pack("<12I", *map(len, tiles))
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    data = head + offsets + lengths
    return data + bytes(begin - len(data)) + b"".join(tiles) + struct.pack("<H", len(entries)) + table + bytes(4)


def _webps() -> list[bytes]:
    more = [Image.new("RGB", (64, 48))]
    return [
        _saved("WEBP", "RGB"),
        _saved("WEBP", "RGBA", lossless=True),
        _saved("WEBP", "RGB", save_all=True, append_images=more),
    ]


def _of_jpeg(data: bytes) -> list[Field]:
    places = [match.start() for match in re.finditer(rb"\xff[\xc0-\xcf\xda-\xfe]", data)]
    return [Field(place + 2, ">H") for place in places] + [Field(p + 5, ">H") for p in places if data[p + 1] < 0xD0]


def _chunks(data: bytes) -> list[tuple[int, int]]:
    """Place and length of the chunks that a PNG's lengths lead to."""
    found, place = [], 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        if place + 12 + length > len(data):
            break
        found.append((place, length))
        place += 12 + length
    return found


def _of_png(data: bytes) -> list[Field]:
    return [Field(place, ">I") for place, _ in _chunks(data)] + [Field(16, ">I"), Field(20, ">I")]


def _with_checksums(data: bytes, _: np.random.Generator) -> bytes:
    result = bytearray(data)
    for place, length in _chunks(data):
        end = place + 8 + length
        result[end : end + 4] = struct.pack(">I", zlib.crc32(data[place + 4 : end]))
    return bytes(result)


def _of_tiff(data: bytes) -> list[Field]:
    order = "<" if data[:2] == b"II" else ">"
    if len(data) < 8:
        return []
    (begin,) = struct.unpack_from(order + "I", data, 4)
    fields = [Field(4, order + "I")]
    if begin + 2 <= len(data):
        (count,) = struct.unpack_from(order + "H", data, begin)
        fields.append(Field(begin, order + "H"))
        for entry in range(begin + 2, min(begin + 2 + 12 * count, len(data) - 12), 12):
            fields += [Field(entry, order + "H"), Field(entry + 2, order + "H"), Field(entry + 4, order + "I")]
            fields.append(Field(entry + 8, order + "I"))
    return fields


def _of_webp(data: bytes) -> list[Field]:
    return [
        Field(4, "<I"),
        *(Field(match.start() + 4, "<I") for match in re.finditer(rb"VP8[ LX]|ANMF|ANIM|ALPH", data)),
    ]


def _as_it_is(data: bytes, _: np.random.Generator) -> bytes:
    return data


def _outcome(data: bytes, number: int, folder: Path) -> str:
    """What packing makes of an image."""
    options = OPTIONS[number % len(OPTIONS)]
    try:
        found = encode(data, options)
    except Rejected as error:
        return str(error) if CAUSE.fullmatch(str(error)) else f"FAULT: left out without a cause: {error!r}"
    size = found.width, found.height
    header = read_header(found.data)
    if header is None or not found.data.endswith(END) or size not in ((header.width, header.height),):
        return f"FAULT: packed as {size}, by its header {header}"
    if options.check:  # unchecked images pass by their header alone, and Pillow may not be able to read them
        with Image.open(io.BytesIO(found.data)) as image:
            image.load()
            if image.size != size:
                return f"FAULT: packed as {size}, is {image.size}"
    return ACCEPTED


JPEG = Kind(_jpegs, _of_jpeg, _as_it_is, _outcome)
PNG = Kind(_pngs, _of_png, _with_checksums, _outcome)
TIFF = Kind(_tiffs, _of_tiff, _as_it_is, _outcome)
WEBP = Kind(functools.cache(_webps), _of_webp, _as_it_is, _outcome)
