from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from shards.images.resample import blocks, shrink

SIZES = [
    (64, 48, 32, 24),
    (101, 67, 100, 66),
    (640, 480, 341, 256),
    (300, 9, 100, 3),
    (40, 400, 10, 100),
    (33, 33, 33, 8),
]


def noise(width: int, height: int, mode: str) -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("width", "height", "to_width", "to_height"), SIZES)
def test_equals_pillows_lanczos_in_floats(mode, width, height, to_width, to_height):
    image = noise(width, height, mode)
    found = shrink(image, (to_width, to_height))
    assert (found.mode, found.size) == (mode, (to_width, to_height))
    for plane, original in zip(found.split(), image.split(), strict=True):
        resized = original.convert("F").resize((to_width, to_height), Image.Resampling.LANCZOS)
        difference = np.abs(np.asarray(plane) - np.asarray(resized).clip(0, 255))
        assert difference.max() <= 1.0  # half by rounding, the rest by taps of 12 bits
        assert difference.mean() < 0.3  # a quarter by rounding alone


@pytest.mark.parametrize("value", [0, 1, 127, 255])
def test_a_uniform_surface_is_unchanged(value):
    found = np.asarray(shrink(Image.new("L", (500, 375), value), (341, 256)))
    assert (found == value).all()


@pytest.mark.parametrize(("inputs", "outputs"), [(500, 341), (375, 256), (4000, 10), (9, 8), (65_500, 256)])
def test_sums_are_exact_in_float32(inputs, outputs):
    """All partial sums are integers below 2**24, so no order of adding can change the bytes."""
    for block in blocks(inputs, outputs):
        taps = block.taps.astype(np.int64)
        assert (taps == block.taps).all()
        assert (taps.sum(axis=1) == 4096).all()
        weight = np.abs(taps).sum(axis=1).max()
        between = int(np.ceil(255 * weight / 4096 * 4)) + 1
        assert between * weight < 2**24


def test_blocks_cover_all_outputs_once():
    covered = [place for block in blocks(500, 341) for place in range(block.start, block.stop)]
    assert covered == list(range(341))
