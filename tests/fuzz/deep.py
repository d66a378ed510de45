"""Damaged 16-bit images through the packer's decoders; what is accepted has the pixels that Pillow sees."""

from __future__ import annotations

import functools
import io
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from shards.images import deep
from shards.images.encode import Rejected, encode
from shards.images.options import EncodeOptions
from shards.images.tiff import read_tiff
from tests.fuzz.faults import ACCEPTED, Kind
from tests.fuzz.images import CAUSE, PNG, TIFF
from tests.support.pictures import cells, encoded, png_16, png_chunk
from tests.support.tiffs import DEFLATE, GREY, GREY_INVERTED, RGB, tiff

_OPTIONS = (EncodeOptions(keep_16_bit=True), EncodeOptions(keep_16_bit=True, resize=16, drop_blank=True))
_TURNED = png_chunk(b"eXIf", b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0")


@functools.cache
def _pngs() -> list[bytes]:
    grey, rgb = cells(), cells(channels=3)
    alpha = np.dstack([rgb, rgb[..., 0] * 16])
    plain = [png_16(grey), png_16(rgb), png_16(alpha), png_16(alpha[..., 2:])]
    key = png_chunk(b"tRNS", struct.pack(">H", 200))
    return [*plain, png_16(grey, key), png_16(grey, _TURNED), encoded(Image.fromarray(grey), "PNG")]


@functools.cache
def _tiffs() -> list[bytes]:
    grey, rgb = cells(), cells(channels=3)
    image = Image.fromarray(grey)
    return [
        tiff(grey, GREY), tiff(grey, GREY, order=">"), tiff(grey, GREY_INVERTED, compression=DEFLATE),
        tiff(rgb, RGB, planar=True), tiff(rgb, RGB, order=">", compression=DEFLATE),
        encoded(image, "TIFF", compression="tiff_lzw"), encoded(image, "TIFF", compression="packbits"),
        encoded(image, "TIFF", save_all=True, append_images=[image]), tiff(grey, GREY, tags={274: ("H", [6])}),
        _tiled(),
    ]  # fmt: skip


def _tiled() -> bytes:
    """A TIFF of 16 x 16 tiles, one after the other."""
    pixels = cells()
    tiles = [pixels[y : y + 16, x : x + 16] for y in range(0, 48, 16) for x in range(0, 64, 16)]
    places, lengths = [8 + 512 * number for number in range(12)], [512] * 12
    of_tiles = {322: ("I", [16]), 323: ("I", [16]), 324: ("I", places), 325: ("I", lengths)}
    size = {256: ("I", [64]), 257: ("I", [48])}
    return tiff(np.concatenate(tiles), GREY, tags={**size, **of_tiles}, without=(273, 278, 279))


def _outcome(data: bytes, number: int, folder: Path) -> str:
    """What packing makes of an image."""
    options = _OPTIONS[number % 2]
    try:
        found = encode(data, options)
    except Rejected as error:
        text = str(error)
        named = CAUSE.fullmatch(text) or text.startswith(("blank: ", "not 16 bits: "))
        return text if named else f"FAULT: without a cause: {error!r}"
    pixels = deep.decoded(found.data, found.width, found.height)
    if found.counts is None or (deep.counts(pixels) != found.counts).any():
        return "FAULT: the counts are not those of the pixels"
    other = _by_pillow(data)
    if other is None or options.resize is not None or other.shape != pixels.shape:
        return ACCEPTED  # of another shape: orientations of an odd type are read in both ways
    if (other != pixels).any():
        return f"FAULT: Pillow sees other values in {(other != pixels).mean():.1%} of the pixels"
    return ACCEPTED


def _by_pillow(data: bytes) -> np.ndarray | None:
    """Pixels of a grey TIFF or PNG, of a PNG that is upright and opaque; None of others, which Pillow reduces."""
    if data.startswith(b"\x89PNG") and (b"eXIf" in data or b"tRNS" in data):
        return None
    layout = read_tiff(data)
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=["PNG", "TIFF"]) as image:
            warnings.simplefilter("ignore")
            image.load()
            pixels = np.asarray(image) if image.mode.startswith("I;16") else None
    except Exception:  # Pillow is the stricter one
        return None
    return 65535 - pixels if pixels is not None and layout is not None and layout.inverted else pixels


PNG16 = Kind(_pngs, PNG.fields, PNG.repair, _outcome)
TIFF16 = Kind(_tiffs, TIFF.fields, TIFF.repair, _outcome)
