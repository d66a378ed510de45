"""Procedural images: labelled class folders of JPEG files for the demo, the benchmarks and the tests.

A class is a pattern (`fastmoco.demo.patterns`). All other properties of an image are random and independent of its
class: a dark and a light colour and which of them is the background; zoom, rotation, position and distortion of the
pattern; illumination; small objects on top; noise. So colour does not separate the classes. Nor does it separate
images of one class after MoCo's colour augmentation, because all share one narrow range of hues. What remains to be
learnt is the pattern.
"""

from __future__ import annotations

import os
from colorsys import hsv_to_rgb
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fastmoco.demo.canvas import Array, Canvas, value_noise
from fastmoco.demo.patterns import PATTERNS
from fastmoco.runs.progress import progress

CLASSES = tuple(pattern.__name__ for pattern in PATTERNS)
"""Names of the classes, in the order in which `make_images` uses them."""

# grey as ITU-R BT.601 has it, and Pillow
_LUMA = np.array([0.299, 0.587, 0.114])


def make_images(
    out: Path,
    *,
    classes: int,
    per_class: int,
    size: int | tuple[int, int],
    seed: int,
    first: int = 0,
) -> Path:
    """Write `out`/CLASS/00000.jpg and so on: `classes` folders of `per_class` images each.

    An image depends on (seed, class, index, size) only. A second set whose `first` is larger than all indices of the
    first set shares no image with it. Files of the same name are replaced.

    Args:
        out: folder to write to; created if missing.
        classes: number of classes, at most `len(CLASSES)`.
        per_class: images in each class.
        size: side in pixels, or (height, width).
        seed: seed of all random numbers.
        first: index of the first image of each class.

    Returns:
        `out`.

    Raises:
        ValueError: a number is out of range.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if not 1 <= classes <= len(CLASSES):
        raise ValueError(f"classes is {classes}; there are patterns for 1 to {len(CLASSES)} classes")
    if per_class < 1:
        raise ValueError(f"per_class is {per_class}; at least 1 image a class is needed")
    if min(height, width) < 16:
        raise ValueError(f"size {height}x{width} is too small to show a pattern; use at least 16 pixels")
    if seed < 0 or first < 0:
        raise ValueError(f"seed ({seed}) and first ({first}) must not be negative")
    with progress("drawing images", classes * per_class) as bar:
        for label in range(classes):
            folder = out / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(first, first + per_class):
                # a generator for each image: sets of any size and split share images of the same index
                rng = np.random.default_rng((seed, label, index))
                image, path = draw_image(label, height, width, rng), folder / f"{index:05d}.jpg"
                # renamed when complete, but not a `whole_file`, which waits for the disk: there are thousands, and an
                # image lost in a crash is generated again
                partial = path.with_name(path.name + ".partial")
                image.save(partial, format="JPEG", quality=int(rng.integers(75, 96)))
                os.replace(partial, path)
                bar.advance()
    return out


def draw_image(label: int, height: int, width: int, rng: np.random.Generator) -> Image.Image:
    """One RGB image of class `label`, height x width pixels; advances `rng`."""
    canvas = _canvas(height, width, rng)
    mask = np.clip(PATTERNS[label](canvas), 0.0, 1.0).astype(np.float32)[..., None]
    ground, figure = _two_colours(rng)
    pixels = ground * (1 - mask) + figure * mask
    pixels = pixels * _light(height, width, rng)[..., None]
    image = Image.fromarray(_to_bytes(pixels))
    _add_objects(image, rng)
    noise = rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(rng.uniform(0, 0.03))
    return Image.fromarray(_to_bytes(np.asarray(image, np.float32) / 255 + noise))


def _to_bytes(pixels: Array) -> NDArray[np.uint8]:
    """Colours in [0, 1] as bytes, clipped."""
    return (np.clip(pixels, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)


def _canvas(height: int, width: int, rng: np.random.Generator) -> Canvas:
    """Pattern coordinates under a random zoom, rotation, shift and slight distortion."""
    cell = min(height, width) / rng.uniform(3.5, 7.0)  # pixels a cell
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = (x - width / 2) / cell, (y - height / 2) / cell
    angle = np.radians(rng.uniform(-20, 20))
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = cos * x - sin * y, sin * x + cos * y
    bend = np.float32(rng.uniform(0.0, 0.25))
    table = rng.random((64, 64), dtype=np.float32)
    u, v = (
        u + bend * (value_noise(table, 0.5 * u, 0.5 * v) - 0.5),
        v + bend * (value_noise(table, 0.5 * u + 31, 0.5 * v + 17) - 0.5),
    )
    shift = rng.uniform(0.0, 1.0, 2).astype(np.float32)
    return Canvas(u + shift[0], v + shift[1], 1 / cell, rng)


def _two_colours(rng: np.random.Generator) -> tuple[Array, Array]:
    """A cold dark and a warm light colour with different grey values, in random order."""
    while True:
        ink = np.asarray(hsv_to_rgb(*rng.uniform((0.58, 0.2, 0.05), (0.66, 0.8, 0.65))), np.float32)
        paper = np.asarray(hsv_to_rgb(*rng.uniform((0.05, 0.1, 0.35), (0.13, 0.4, 1.0))), np.float32)
        # drawn again until light and dark differ in grey, so that the pattern survives a conversion to grey
        if float((paper - ink) @ _LUMA) > 0.25:
            return (ink, paper) if rng.random() < 0.5 else (paper, ink)


def _light(height: int, width: int, rng: np.random.Generator) -> Array:
    """float32[height, width]: a brightness gradient and a bright or dark spot, around 1."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x / width - 0.5, y / height - 0.5
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.7)
    spot_x, spot_y, strength = rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5), rng.uniform(-0.3, 0.4)
    spot = strength * np.exp(-((x - spot_x) ** 2 + (y - spot_y) ** 2) / 0.08)
    return (1 + slope * (np.cos(angle) * x + np.sin(angle) * y) + spot).astype(np.float32)


def _add_objects(image: Image.Image, rng: np.random.Generator) -> None:
    """Up to two small discs, boxes or strokes of random colours."""
    canvas = ImageDraw.Draw(image)
    width, height = image.size
    for _ in range(int(rng.integers(0, 3))):
        colour = tuple(_to_bytes(_two_colours(rng)[0]).tolist())
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        reach = float(rng.uniform(0.04, 0.12)) * min(width, height)
        box = (x - reach, y - reach, x + reach, y + reach)
        kind = int(rng.integers(3))
        if kind == 0:
            canvas.ellipse(box, fill=colour)
        elif kind == 1:
            canvas.rectangle(box, fill=colour)
        else:
            angle = rng.uniform(0, 2 * np.pi)
            end = (x + 4 * reach * np.cos(angle), y + 4 * reach * np.sin(angle))
            canvas.line((x, y, *end), fill=colour, width=max(1, round(reach / 3)))
