"""Images with known copies: parts of photographs that do not overlap, exact copies, and near copies of some of them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from _command import BenchmarkError
from shards.images.blank import single_colour

QUALITY = 92
KINDS = ("resized", "recompressed", "cropped")
CROP = 0.95
LARGEST = 500  # pixels of a part's width: the images of ImageNet are about as large


@dataclass(frozen=True)
class Picture:
    """One image of the benchmark.

    Attributes:
        path: The file.
        origin: Number of the image that it is, or is a copy of.
        kind: `original`, `exact`, or one of KINDS.
        photo: Number of the photograph that it is a part of.
    """

    path: Path
    origin: int
    kind: str
    photo: int


def pictures(photos: list[Path], images: int, exact: int, near: int, folder: Path, workers: int) -> list[Picture]:
    """The images, written to `folder`: originals, `exact` copies of the first ones, `near` copies of the next ones.

    Originals are 4:3, and as large as their number allows. Parts of a single colour are not used.

    Raises:
        BenchmarkError: The photographs are too small for that many.
    """
    originals = images - exact - near
    sizes = [_size(photo) for photo in photos]
    width = max((w for w in range(32, LARGEST + 1, 4) if _count(sizes, w) >= 1.25 * originals), default=0)
    if not width:
        raise BenchmarkError(f"the photographs are too small for {originals:,} parts; give more, or fewer --images")
    folder.mkdir(parents=True)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        found = list(pool.map(partial(_cut, folder=folder, width=width), range(len(photos)), photos))
    parts = [(path, photo) for photo, paths in enumerate(found) for path in paths]
    np.random.default_rng(0).shuffle(parts)
    if len(parts) < originals:
        raise BenchmarkError(f"only {len(parts):,} parts have more than one colour; give more photographs")
    made = [
        Picture(Path(path), number, "original", int(photo)) for number, (path, photo) in enumerate(parts[:originals])
    ]
    return made + list(_copies(made, exact, near, folder))


def _copies(made: list[Picture], exact: int, near: int, folder: Path) -> Iterator[Picture]:
    chance = np.random.default_rng(1)
    for number, picture in enumerate(made[: exact + near]):
        kind = "exact" if number < exact else KINDS[number % len(KINDS)]
        data = picture.path.read_bytes()
        path = folder / f"{kind}-{number:06d}.jpg"
        path.write_bytes(data if kind == "exact" else changed(data, kind, chance))
        yield Picture(path, picture.origin, kind, picture.photo)


def changed(data: bytes, kind: str, chance: np.random.Generator) -> bytes:
    """A near copy: 40 to 90 % of the size, quality 20 to 80, or 5 % of both sides cut off at a random place."""
    image, quality = Image.open(io.BytesIO(data)).convert("RGB"), QUALITY
    width, height = image.size
    if kind == "resized":
        factor = chance.uniform(0.4, 0.9)
        image = image.resize((round(width * factor), round(height * factor)), Image.Resampling.LANCZOS)
    elif kind == "recompressed":
        quality = int(chance.integers(20, 81))
    else:
        w, h = round(width * CROP), round(height * CROP)
        x, y = (int(chance.integers(0, room + 1)) for room in (width - w, height - h))
        image = image.crop((x, y, x + w, y + h))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _size(photo: Path) -> tuple[int, int]:
    with Image.open(photo) as image:
        return image.size


def _count(sizes: list[tuple[int, int]], width: int) -> int:
    return sum((w // width) * (h // (width * 3 // 4)) for w, h in sizes)


def _cut(number: int, photo: Path, folder: Path, width: int) -> list[str]:
    """Write the parts of a photograph that have more than one colour; their paths."""
    height, paths = width * 3 // 4, []
    with Image.open(photo) as file:
        image = file.convert("RGB")
    for top in range(0, image.height - height + 1, height):
        for left in range(0, image.width - width + 1, width):
            part = image.crop((left, top, left + width, top + height))
            if not single_colour(part):
                path = folder / f"{number:03d}-{top:05d}-{left:05d}.jpg"
                part.save(path, quality=QUALITY)
                paths.append(str(path))
    return paths
