from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from shards.images import resample
from shards.images.resample import SHIFTS, lanczos, shrink
from shards.kernels import reference
from shards.kernels.filters import STRIP

SIZES = [
    (64, 48, 32, 24),
    (101, 67, 100, 66),
    (640, 480, 341, 256),
    (300, 9, 100, 3),
    (40, 400, 10, 100),
    (33, 33, 33, 8),
]
ODD_SIZES = [
    (8, 8, 7, 1),
    (10, 8, 1, 8),
    (11, 31, 11, 30),
    (31, 33, 31, 32),
    (65, 9, 64, 9),
    (1, 300, 1, 20),
    (300, 1, 20, 1),
    (4000, 20, 13, 5),
    (20, 4000, 5, 13),
]


def noise(width: int, height: int, mode: str) -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("width", "height", "to_width", "to_height"), SIZES)
def test_equals_pillows_lanczos_in_floats(mode, width, height, to_width, to_height):
    image = noise(width, height, mode)
    found = shrink(np.asarray(image), (to_width, to_height))
    assert (found.mode, found.size) == (mode, (to_width, to_height))
    for plane, original in zip(found.split(), image.split(), strict=True):
        resized = original.convert("F").resize((to_width, to_height), Image.Resampling.LANCZOS)
        difference = np.abs(np.asarray(plane) - np.asarray(resized).clip(0, 255))
        assert difference.max() <= 1.0  # half by rounding, the rest by taps of 12 bits
        assert difference.mean() < 0.3  # a quarter by rounding alone


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("width", "height", "to_width", "to_height"), SIZES + ODD_SIZES)
def test_bytes_are_the_references(mode, width, height, to_width, to_height):
    """Also of black and white alone, where the filter overshoots most."""
    down, along = lanczos(height, to_height), lanczos(width, to_width)
    for image in (noise(width, height, mode), noise(width, height, mode).point(lambda level: 255 * (level > 127))):
        pixels = np.asarray(image).reshape(height, width, -1)
        expected = reference.filtered(pixels, down, along, (to_height, to_width), SHIFTS)
        found = np.asarray(shrink(np.asarray(image), (to_width, to_height))).reshape(expected.shape)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_no_row_is_read_beyond_its_end(mode, monkeypatch):
    filtered, laid_down = resample._functions()

    def checked(image, stride, rows, columns, channels, *others):
        assert STRIP <= columns * channels <= stride
        filtered(image, stride, rows, columns, channels, *others)

    monkeypatch.setattr(resample, "_functions", lambda: [checked, laid_down])
    for width in (1, 8, 10, 11, 31, 32, 33):
        shrink(np.asarray(noise(width, 40, mode)), (width, 20))


@pytest.mark.parametrize(
    ("mode", "size", "digest"),
    [
        ("RGB", SIZES[0], "9dff94329454997e"),
        ("L", SIZES[1], "73c7968389835493"),
        ("RGB", SIZES[2], "6fd5cd94f32c9155"),
        ("RGB", SIZES[3], "7e5f805cd611313b"),
        ("RGB", ODD_SIZES[3], "27bc8ad237908727"),
        ("RGB", ODD_SIZES[7], "15a4ab1c1843ab5e"),
    ],
)
def test_bytes_stay_those_of_sets_that_exist(mode, size, digest):
    """A set that was begun by an earlier version is continued with the same pixels."""
    width, height, *to = size
    found = np.asarray(shrink(np.asarray(noise(width, height, mode)), tuple(to)))
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("value", [0, 1, 127, 255])
def test_a_uniform_surface_is_unchanged(value):
    found = np.asarray(shrink(np.full((375, 500), value, np.uint8), (341, 256)))
    assert (found == value).all()


@pytest.mark.parametrize(("inputs", "outputs"), [(500, 341), (375, 256), (4000, 10), (9, 8), (65_500, 256)])
def test_no_sum_overflows(inputs, outputs):
    """Values between the passes fit int16, and sums int32, whatever the image and the order of adding."""
    taps = lanczos(inputs, outputs).weights[:outputs].astype(np.int64)
    assert (taps.sum(axis=1) == 4096).all()
    weight = np.abs(taps).sum(axis=1).max()
    between = -(-255 * weight >> SHIFTS[0])
    assert between < 2**15
    assert between * weight < 2**31
