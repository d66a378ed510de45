"""The colour map against torchvision's functions, where nothing is clipped, and its one implementation."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image, ImageOps

from pipelines import ViewSpec, draw
from pipelines.colour import Colours, colour_map, finish
from pipelines.draws import draw_colour
from pipelines.views import ColourFactors, ViewParams

SPEC = replace(ViewSpec.moco_v2(32), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
# torchvision's grey weights are 0.2989, 0.587, 0.114 (sum 0.9999) against 0.299 here: 255 * 1e-4 = 0.03 levels,
# times the largest factor, 1.4 for each operation that reads grey
GREY_WEIGHTS = 0.06


def _factors(grey=False, **values):
    neutral = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0} | values
    arrays = {name: np.array([value]) for name, value in neutral.items()}
    return ColourFactors(**arrays, grey=np.array([grey]))


def _apply(image, factors):
    """Levels in [0, 255] of float [3, H, W] after the composed map of one view."""
    linear, mean_gain = colour_map(factors)
    none = np.zeros(1, bool)
    params = ViewParams(np.zeros((1, 4)), np.zeros(1), none, none, none, linear, mean_gain, none)
    return finish(image.permute(1, 2, 0)[None].contiguous(), params, SPEC)[0] * 255


@pytest.fixture(scope="module")
def image():
    """Levels from 90 to 150, so that no factor of the papers' clips them."""
    return torch.randint(90, 151, (3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def _theirs(image, factors, order):
    steps = {
        0: lambda x: TF.adjust_brightness(x, float(factors.brightness[0])),
        1: lambda x: TF.adjust_contrast(x, float(factors.contrast[0])),
        2: lambda x: TF.adjust_saturation(x, float(factors.saturation[0])),
    }
    for operation in order:
        if operation in steps:
            image = steps[operation](image)
    return image


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("value", [0.6, 1.0, 1.4])
def test_each_operation_is_torchvisions(image, name, value):
    factors = _factors(**{name: value})
    expected = _theirs(image.float() / 255, factors, (0, 1, 2)) * 255
    torch.testing.assert_close(_apply(image, factors), expected, atol=GREY_WEIGHTS, rtol=0)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_operations_compose_to_torchvisions_in_every_order(image, order):
    factors = _factors(brightness=1.3, contrast=0.7, saturation=1.3)
    expected = _theirs(image.float() / 255, factors, order) * 255
    torch.testing.assert_close(_apply(image, factors), expected, atol=3 * GREY_WEIGHTS, rtol=0)


@pytest.mark.parametrize("grey_first", [True, False])
def test_grey_is_torchvisions_before_or_after_the_jitter(image, grey_first):
    factors = _factors(grey=True, brightness=0.8, contrast=1.2, saturation=0.7)
    x = image.float() / 255
    if grey_first:
        expected = _theirs(TF.rgb_to_grayscale(x, 3), factors, (0, 1, 2))
    else:
        expected = TF.rgb_to_grayscale(_theirs(x, factors, (0, 1, 2)), 3)
    torch.testing.assert_close(_apply(image, factors), expected * 255, atol=3 * GREY_WEIGHTS, rtol=0)


def test_one_after_the_other_in_any_order_is_the_composed_map(image):
    """Hue and grey too: all the operations commute, so it does not matter in which order they are drawn."""
    values = {"brightness": 0.9, "contrast": 1.2, "saturation": 0.8, "hue": 0.07}
    for grey in (False, True):
        composed = _apply(image, _factors(grey=grey, **values))
        for order in permutations([*values, "grey"]):
            x = image.double()
            for name in order:
                linear, mean_gain = colour_map(_factors(grey) if name == "grey" else _factors(**{name: values[name]}))
                mean = torch.from_numpy(mean_gain[0].astype(np.float64)) @ x.mean((1, 2))
                x = torch.einsum("ij,jhw->ihw", torch.from_numpy(linear[0].astype(np.float64)), x) + mean[:, None, None]
            torch.testing.assert_close(composed, x.float(), atol=1e-3, rtol=0)  # float32 maps, levels up to 255


def test_hue_turns_the_way_torchvisions_does(image):
    """The YIQ rotation keeps luma, HSV's keeps the largest channel: alike in direction, not in amount."""
    red = torch.tensor([200, 60, 60], dtype=torch.uint8).view(3, 1, 1).expand(3, 32, 32)
    for hue in (-0.1, -0.05, 0.05, 0.1):
        ours = _apply(red, _factors(hue=hue))[:, 0, 0]
        theirs = TF.adjust_hue(red.float() / 255, hue)[:, 0, 0] * 255
        assert torch.argsort(ours).tolist() == torch.argsort(theirs).tolist()
        # at a tenth of the circle the least channel differs by 52 of 255 levels: one map keeps luma, the other
        # the largest and the least channel
        assert (ours - theirs).abs().max() < 60
    greys = torch.full((3, 32, 32), 120, dtype=torch.uint8)
    torch.testing.assert_close(_apply(greys, _factors(hue=0.3)), greys.float(), atol=1e-3, rtol=0)


def test_hue_keeps_luma_and_a_whole_turn_is_none(image):
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    turned = _apply(image, _factors(hue=0.08))
    torch.testing.assert_close((turned * luma).sum(0), (image.float() * luma).sum(0), atol=0.01, rtol=0)
    torch.testing.assert_close(_apply(image, _factors(hue=1.0)), image.float(), atol=0.01, rtol=0)


def test_solarization_is_pillows_and_torchvisions():
    """Of views whose other colours are as they were, on every level."""
    levels = torch.arange(256, dtype=torch.uint8).repeat(3, 3).view(3, 16, 48)
    linear, mean_gain = colour_map(_factors())
    none, all_of_them = np.zeros(1, bool), np.ones(1, bool)
    params = ViewParams(np.zeros((1, 4)), np.zeros(1), none, none, none, linear, mean_gain, all_of_them)
    upright = levels.permute(1, 2, 0).contiguous()
    pillows = np.asarray(ImageOps.solarize(Image.fromarray(upright.numpy())))
    assert torch.equal(TF.solarize(levels, 128).permute(1, 2, 0), torch.from_numpy(pillows.copy()))
    on_gpu = Colours.of(params, SPEC, 16 * 48).on_device(upright[None])[0]
    for found in (finish(upright[None], params, SPEC)[0].permute(1, 2, 0), on_gpu):
        # a rounding of float32 at 1, twice
        np.testing.assert_allclose(found.numpy() * 255, pillows, rtol=0, atol=255 * 2**-22)


@pytest.mark.parametrize("recipe", [ViewSpec.moco_v1, ViewSpec.moco_v2])
def test_the_map_is_its_definition_clamped_and_normalised(recipe):
    spec = recipe(24)
    params = draw(spec, seed=0, epoch=0, ids=np.arange(32), sizes=np.full((32, 2), 90), view=0)
    views = torch.randint(0, 256, (32, 24, 24, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels = views.numpy().astype(np.float64)
    mean = pixels.mean(axis=(1, 2))
    levels = np.einsum("bij,bhwj->bhwi", params.linear.astype(np.float64), pixels)
    levels += np.einsum("bij,bj->bi", params.mean_gain.astype(np.float64), mean)[:, None, None]
    expected = (levels.clip(0, 255) / 255 - np.array(spec.mean)) / np.array(spec.std)
    result = finish(views, params, spec)
    assert result.is_contiguous(memory_format=torch.channels_last)
    # float32 sums of a few terms of up to 255 * 3 levels: 1e-4 levels, over 255 * 0.225
    np.testing.assert_allclose(result.permute(0, 2, 3, 1).numpy(), expected, atol=2e-5)


def test_the_operations_of_a_gpu_and_the_compiled_loop_agree():
    for size in (37, 38):
        spec = replace(ViewSpec.moco_v2(size), solarize=0.5)
        params = draw(spec, seed=0, epoch=0, ids=np.arange(9), sizes=np.full((9, 2), 90), view=0)
        views = torch.randint(0, 256, (9, size, size, 3), dtype=torch.uint8)
        colours = Colours.of(params, spec, size * size)
        looped = finish(views, params, spec).permute(0, 2, 3, 1)
        # the same float32 terms, of up to 3 levels in normalised values, added in another order
        torch.testing.assert_close(colours.on_device(views), looped, atol=1e-5, rtol=0)
        for slot in reversed(range(9)):
            part = slice(slot, slot + 1)
            assert torch.equal(finish(views[part], params.take(part), spec).permute(0, 2, 3, 1), looped[part])


def test_the_sum_of_a_large_white_view_does_not_overflow():
    side = 2_902  # 255 times its pixels are over 2 ** 31
    spec = ViewSpec(side, mean=(0.449,), std=(0.226,))
    none, half = np.zeros(1, bool), np.full((1, 3, 3), 0.5 / 3, np.float32)
    params = ViewParams(np.zeros((1, 4)), np.zeros(1), none, none, none, half, half, none)
    white = torch.full((1, side, side, 1), 255, dtype=torch.uint8)
    for found in (Colours.of(params, spec, side**2).on_device(white), finish(white, params, spec)):
        assert abs(found.flatten()[[0, -1]] - (1 - 0.449) / 0.226).max() < 1e-4


def test_half_precision_is_the_rounded_result():
    spec = ViewSpec.moco_v2(16)
    params = draw(spec, seed=0, epoch=0, ids=np.arange(2), sizes=np.full((2, 2), 90), view=0)
    views = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    assert torch.equal(finish(views, params, spec, torch.bfloat16), finish(views, params, spec).bfloat16())


def test_neutral_factors_change_nothing(image):
    colours = draw_colour(replace(SPEC, jitter=0.0, grey=0.0), np.full((1, 8), 0.5))
    torch.testing.assert_close(_apply(image, colours), image.float(), atol=1e-3, rtol=0)
