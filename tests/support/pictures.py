"""Real image files, whole and malformed."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def gradient(width: int = 64, height: int = 48, seed: int | None = None) -> Image.Image:
    """A colour gradient, with noise if a seed is given."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=-1)
    if seed is not None:
        pixels = pixels + np.random.default_rng(seed).integers(-40, 40, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The file that Pillow writes in the format `kind`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(image: Image.Image, **options: Any) -> bytes:
    """A JPEG file of quality 92."""
    return encoded(image, "JPEG", **{"quality": 92, **options})


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its data do not have."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))  # Adam7


def png_16(pixels: np.ndarray, chunks: bytes = b"", *, interlaced: bool = False, rows: int | None = None) -> bytes:
    """A PNG of 16 bits, as no program in use here writes it.

    Args:
        pixels: uint16 [H, W], or [H, W, C] with 2 (grey and alpha), 3 (RGB) or 4 channels.
        chunks: Between its header and its data.
        interlaced: In Adam7's order.
        rows: Of the pixels that it has data of, not interlaced; None: all.
    """
    height, width, channels = pixels.reshape(*pixels.shape[:2], -1).shape
    parts = [pixels[y::down, x::across] for y, x, down, across in _PASSES] if interlaced else [pixels[:rows]]
    data = b"".join(b"\0" + row.astype(">u2").tobytes() for part in parts for row in part)
    colours = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colours, 0, 0, int(interlaced))
    body = png_chunk(b"IHDR", header) + chunks + png_chunk(b"IDAT", zlib.compress(data)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def cells(width: int = 64, height: int = 48, channels: int = 1, seed: int = 0) -> np.ndarray:
    """uint16 [H, W] or [H, W, 3]: spots on a dark, noisy ground, as a microscope's camera of 12 bits sees them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = []
    for _ in range(channels):
        ground = rng.normal(200, 20, (height, width))
        for _ in range(6):
            away = (x - rng.uniform(0, width)) ** 2 + (y - rng.uniform(0, height)) ** 2
            ground += rng.uniform(500, 3500) * np.exp(-away / rng.uniform(8, 60))
        planes.append(ground.clip(0, 4095).astype(np.uint16))
    return planes[0] if channels == 1 else np.stack(planes, axis=-1)


def decoded_png_16(data: bytes) -> np.ndarray:
    """uint16 [H, W] or [H, W, 3] of a PNG with 16 bits, not interlaced, by its specification alone."""
    width, height, depth, colours, *_, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    assert depth == 16 and colours in (0, 2) and not interlaced
    place, packed = 33, b""
    while data[place + 4 : place + 8] == b"IDAT":
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        packed, place = packed + data[place + 8 : end], end + 4
    assert data[place:] == b"\0\0\0\0IEND\xaeB`\x82"  # no other chunk
    step = 6 if colours else 2
    lines, above = zlib.decompress(packed), bytes(step + step * width)  # with a pixel of zeros on the left
    rows = []
    for start in range(0, len(lines), step * width + 1):
        row = bytearray(step) + lines[start + 1 : start + 1 + step * width]
        for at in range(step, len(row)):
            left, up, corner = row[at - step], above[at], above[at - step]
            nearest = min((left, up, corner), key=lambda value: abs(left + up - corner - value))
            row[at] = (row[at] + (0, left, up, (left + up) // 2, nearest)[lines[start]]) % 256
        rows.append(np.frombuffer(row[step:], ">u2"))
        above = row
    pixels = np.array(rows).astype(np.uint16).reshape(height, width, -1)
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels
