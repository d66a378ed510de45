"""TIFF files of any layout, written from arrays."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

_FORMATS = {"B": 1, "H": 3, "I": 4, "Q": 16}
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
    wide: bool = False,
    pages: int = 1,
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
        wide: As a BigTIFF, with counts and offsets of 8 bytes.
        pages: Directories, all of the same pixels.
    """
    height, width, channels = pixels.reshape(*pixels.shape[:2], -1).shape
    typed = pixels.astype(pixels.dtype.newbyteorder(order)).reshape(height, width, channels)
    planes = [typed[..., channel] for channel in range(channels)] if planar else [typed]
    strips = [plane.tobytes() if compression == NONE else zlib.compress(plane.tobytes()) for plane in planes]
    begin = (16 if wide else 8) + len(below)
    offsets = [begin + sum(map(len, strips[:number])) for number in range(len(strips))]
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    entries: dict[int, Tag] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [8 * pixels.dtype.itemsize] * channels),
        259: ("H", [compression]),
        262: ("H", [photometric]),
        273: ("Q" if wide else "I", offsets),
        277: ("H", [channels]),
        278: ("I", [height]),
        279: ("Q" if wide else "I", [len(strip) for strip in strips]),
        284: ("H", [2 if planar else 1]),
        339: ("H", [kind] * channels),
        **(tags or {}),
    }
    entries = {tag: entry for tag, entry in entries.items() if tag not in without}
    data = b"".join(strips)
    data += bytes(len(data) % 2)
    place = begin + len(data)
    mark = {"<": b"II", ">": b"MM"}[order]
    mark += struct.pack(f"{order}HHHQ", 43, 8, 0, place) if wide else struct.pack(f"{order}HI", 42, place)
    directories = b""
    for page in range(pages):
        start = place + len(directories)
        end = start + len(directory(entries, start, order, wide=wide))
        directories += directory(entries, start, order, end if page + 1 < pages else 0, wide)
    return mark + below + data + directories


def directory(
    entries: Mapping[int, Tag], place: int, order: Order = "<", following: int = 0, wide: bool = False
) -> bytes:
    """An image file directory at offset `place`, with the values that do not fit into it behind it."""
    rows, values = b"", b""
    size, word = (8, "Q") if wide else (4, "I")
    count = struct.pack(order + ("Q" if wide else "H"), len(entries))
    beyond = place + len(count) + (4 + 2 * size) * len(entries) + size
    for tag, (letter, numbers) in sorted(entries.items()):
        value = bytes(numbers) if letter == "s" else struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        rows += struct.pack(f"{order}HH{word}", tag, 2 if letter == "s" else _FORMATS[letter], len(numbers))
        if len(value) > size:
            rows += struct.pack(order + word, beyond + len(values))
            values += value + bytes(len(value) % 2)
        else:
            rows += value.ljust(size, b"\0")
    return count + rows + struct.pack(order + word, following) + values
