"""The compiled loops of a view: the vector version against the plain one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF

from pipelines.augmentation import blur_radius
from pipelines.kernels import deep, reference, views
from pipelines.views import NONE, gaussian

SIZES = [2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40, 63, 64, 65, 97, 224]


def _image(rng, size, channels):
    """Noise of any shape, also one pixel wide or high, or flat black or white, where rounding must not leave 0..255."""
    height, width = rng.integers(1, max(150, 2 * size), 2)
    if rng.random() < 0.1:
        height, width = rng.permutation([1, width])
    image = rng.integers(0, 256, (height, channels * width), dtype=np.uint8)
    return np.full_like(image, rng.choice([0, 255])) if rng.random() < 0.1 else image


def _crop(rng, length):
    """Beginning and length of a crop of [0, length): whole pixels, or fractions as in shrunken images."""
    if rng.random() < 0.5:
        size = rng.integers(1, length + 1)
        return float(rng.integers(0, length - size + 1)), float(size)
    size = rng.uniform(0.5, length)
    return rng.uniform(0, length - size), size


def _views(seed, size, channels):
    """Arguments of `make_view` before ``out``."""
    rng = np.random.default_rng([seed, size, channels])
    for _ in range(12):
        image = _image(rng, size, channels)
        (top, height), (left, width) = _crop(rng, len(image)), _crop(rng, image.shape[1] // channels)
        sigma = rng.uniform(0.1, 2.0)
        window = gaussian(sigma) if blur_radius(sigma) < size and rng.random() < 0.5 else NONE
        yield image, top, left, height, width, window, *(bool(each) for each in rng.random(3) < 0.5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_views_are_the_references_bit_for_bit(size, channels):
    """Each sum adds the same products in the same order, so that even a fused multiply-add rounds alike in both."""
    for arguments in _views(0, size, channels):
        found, expected = (np.zeros((size, channels * size), np.uint8) for _ in range(2))
        views.make_view(*arguments, found)
        reference.make_view(*arguments, expected)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_coloured_views_are_the_references_bit_for_bit(size, channels):
    rng = np.random.default_rng(size)
    low, high = np.float32([-2.1, -2.0, -1.8])[:channels], np.float32([2.2, 2.4, 2.6])[:channels]
    for arguments in _views(1, size, channels):
        linear = rng.normal(scale=0.02, size=(channels, channels)).astype(np.float32)
        gain = rng.normal(scale=0.005 / size**2, size=(channels, channels)).astype(np.float32)
        found, expected = (np.zeros((size, channels * size), np.float32) for _ in range(2))
        solarize = bool(rng.random() < 0.5)
        views.make_coloured_view(*arguments, linear, gain, low, high, solarize, found)
        reference.make_coloured_view(*arguments, linear, gain, low, high, solarize, expected)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [2, 7, 17, 33, 64])
def test_views_of_16_bits_are_torchvisions_in_float64(size, channels):
    """Of any shape, also one pixel wide, with whole crops, as those of images that are decoded in full are."""
    low, high = np.float64([900, 0, 30000])[:channels], np.float64([900.5, 65535, 40000])[:channels]
    factors = np.stack([low, 255 / (high - low)]).astype(np.float32)
    for image, top, left, height, width, window, flip, vertical_flip, transpose in _views(2, size, channels):
        crop = [int(side) for side in (top, left, max(height, 1), max(width, 1))]
        values = image.astype(np.uint16) * np.uint16(257) - (image % 2)  # no multiples of a level
        found = np.zeros((size, channels * size), np.float32)
        deep.make_view(values, factors, *map(float, crop), window, flip, vertical_flip, transpose, found)
        pixels = values.reshape(len(values), -1, channels).astype(np.float64)
        levels = torch.from_numpy(255 * np.clip((pixels - low) / (high - low), 0, 1)).permute(2, 0, 1)
        view = TF.resized_crop(levels, *crop, [size, size], antialias=True)
        if len(window) > 1:  # as `gaussian` rounds it
            view = F.pad(view, [len(window) // 2] * 4, mode="reflect")
            for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
                view = F.conv2d(view[:, None], torch.from_numpy(window).double().reshape(shape))[:, 0]
        view = view.flip(2) if flip else view
        view = view.flip(1) if vertical_flip else view
        view = view.transpose(1, 2) if transpose else view
        expected = view.permute(1, 2, 0).reshape(size, -1).numpy()
        # sums of some thirty numbers up to 255 in float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
