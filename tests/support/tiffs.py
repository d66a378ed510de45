"""TIFF files of any layout, written from arrays."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

_FORMATS = {"B": 1, "H": 3, "I": 4}
NONE, LZW, DEFLATE = 1, 5, 8  # Compression
GREY_INVERTED, GREY, RGB, CMYK, LAB, COLOUR_FILTER = 0, 1, 2, 5, 8, 32803  # PhotometricInterpretation

Order = Literal["<", ">"]
Tag = tuple[str, Sequence[int]]  # struct's letter of its type, and values; or ("s", bytes) for text


def tiff(
    pixels: np.ndarray,
    photometric: int = RGB,
    *,
    planar: bool = False,
    compression: int = NONE,
    order: Order = "<",
    tags: Mapping[int, Tag] | None = None,
    below: bytes = b"",
    without: Sequence[int] = (),
) -> bytes:
    """A TIFF of one strip, or one strip for each plane.

    Args:
        pixels: [H, W] or [H, W, C], of unsigned or signed integers or floats.
        photometric: PhotometricInterpretation.
        planar: One plane after the other (PlanarConfiguration 2).
        compression: NONE or DEFLATE.
        order: "<" or ">".
        tags: Further tags, or others in place of these.
        below: Data from byte 8 on, before the pixels.
        without: Tags that it does not have.
    """
    height, width, channels = pixels.reshape(*pixels.shape[:2], -1).shape
    typed = pixels.astype(pixels.dtype.newbyteorder(order)).reshape(height, width, channels)
    planes = [typed[..., channel] for channel in range(channels)] if planar else [typed]
    strips = [plane.tobytes() if compression == NONE else zlib.compress(plane.tobytes()) for plane in planes]
    offsets = [8 + len(below) + sum(map(len, strips[:number])) for number in range(len(strips))]
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    entries: dict[int, Tag] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [8 * pixels.dtype.itemsize] * channels),
        259: ("H", [compression]),
        262: ("H", [photometric]),
        273: ("I", offsets),
        277: ("H", [channels]),
        278: ("I", [height]),
        279: ("I", [len(strip) for strip in strips]),
        284: ("H", [2 if planar else 1]),
        339: ("H", [kind] * channels),
        **(tags or {}),
    }
    entries = {tag: entry for tag, entry in entries.items() if tag not in without}
    data = b"".join(strips)
    data += bytes(len(data) % 2)
    place = 8 + len(below) + len(data)
    return (
        {"<": b"II*\0", ">": b"MM\0*"}[order]
        + struct.pack(order + "I", place)
        + below
        + data
        + directory(entries, place, order)
    )


def directory(entries: Mapping[int, Tag], place: int, order: Order = "<", following: int = 0) -> bytes:
    """An image file directory at offset `place`, with the values that do not fit into it behind it."""
    rows, values = b"", b""
    beyond = place + 2 + 12 * len(entries) + 4
    for tag, (letter, numbers) in sorted(entries.items()):
        value = bytes(numbers) if letter == "s" else struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        rows += struct.pack(order + "HHI", tag, 2 if letter == "s" else _FORMATS[letter], len(numbers))
        if len(value) > 4:
            rows += struct.pack(order + "I", beyond + len(values))
            values += value + bytes(len(value) % 2)
        else:
            rows += value.ljust(4, b"\0")
    return struct.pack(order + "H", len(entries)) + rows + struct.pack(order + "I", following) + values
