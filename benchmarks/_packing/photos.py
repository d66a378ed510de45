"""The photographs that `packing.py` packs: linked as often as needed, or enlarged."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def linked(photos: list[Path], count: int, folder: Path) -> list[str]:
    """`count` images in ten class folders: links to photographs, which are read once to be in memory."""
    paths = []
    for number in range(count):
        path = folder / f"class {number % 10}" / f"{number:08d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        # links, so that a large set needs no space on the disk; the contestants read through them
        path.symlink_to(photos[number % len(photos)].resolve())
        paths.append(str(path.resolve()))
    for photo in set(paths):
        Path(photo).read_bytes()
    return [str(folder / f"class {number % 10}" / f"{number:08d}.jpg") for number in range(count)]


def enlarged(photos: list[Path], count: int, factor: float, folder: Path) -> list[str]:
    """`count` photographs, each side `factor` times as long, in ten class folders."""
    paths = []
    for number in range(count):
        path = folder / f"class {number % 10}" / f"{number:08d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(photos[number % len(photos)]) as photo:
            size = round(photo.width * factor), round(photo.height * factor)
            photo.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(path, quality=92)
        paths.append(str(path))
    return paths
