"""Real image files in every shape that a collection may hold, and a small packed set."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import PackOptions, pack


def picture(width: int = 64, height: int = 48, seed: int | None = None) -> Image.Image:
    """A colour gradient, with noise where a seed is given."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=-1)
    if seed is not None:
        pixels = pixels + np.random.default_rng(seed).integers(-40, 40, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 92, **options})
    return buffer.getvalue()


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its data do not have."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def command(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """Run fastmoco-shard in a process of its own."""
    line = [sys.executable, "-m", "shards.cli", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, check=False, **options)


def same_files(first: Path, second: Path) -> bool:
    names = sorted(os.listdir(first))
    return names == sorted(os.listdir(second)) and all(
        (first / name).read_bytes() == (second / name).read_bytes() for name in names
    )


@pytest.fixture(scope="session")
def helpers():
    """The functions above: test folders are no packages, so they cannot be imported."""
    return sys.modules[__name__]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 noisy JPEGs in three class folders."""
    root = tmp_path_factory.mktemp("images")
    for number in range(120):
        path = root / f"class {number % 3}" / f"{number:03d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(picture(60 + number, 50 + number % 7, seed=number)))
    return root


@pytest.fixture(scope="session")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That folder in five shards of 25 (the last of 20), packed by one worker; not to be changed."""
    out = tmp_path_factory.mktemp("set") / "shards"
    pack(PackOptions(folder, out, workers=1, shard_size=25), progress=False)
    return out
