"""Draws: pure functions of their place, distributed as torchvision's own samplers draw."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms import ColorJitter, RandomResizedCrop

from pipelines import ViewSpec, draw
from pipelines._random import uniforms
from pipelines.draws import draw_boxes, draw_colour

N = 2000
# two-sample Kolmogorov-Smirnov at level 1e-4: sqrt(-ln(1e-4 / 2) / 2) * sqrt(2 / N)
KS_BOUND = np.sqrt(-np.log(1e-4 / 2) / 2) * np.sqrt(2 / N)


def _ks(a, b):
    """Largest distance between two samples' distribution functions."""
    both = np.sort(np.concatenate((a, b)))
    return np.abs(np.searchsorted(np.sort(a), both, "right") - np.searchsorted(np.sort(b), both, "right")).max() / N


@pytest.mark.parametrize("size", [(375, 500), (64, 64), (700, 200)])
def test_boxes_are_distributed_as_random_resized_crop_draws_them(size):
    spec = ViewSpec.moco_v2()
    numbers = uniforms(np.arange(N), seed=11, epoch=0, stream=0, count=22)
    ours = draw_boxes(spec, numbers, np.tile(np.array(size, dtype=np.int32), (N, 1)))
    torch.manual_seed(0)
    image = torch.empty(1, *size)
    theirs = np.array([RandomResizedCrop.get_params(image, list(spec.area), list(spec.ratio)) for _ in range(N)])
    for column in range(4):
        assert _ks(ours[:, column], theirs[:, column]) < KS_BOUND
    for derive in (lambda box: box[:, 2] * box[:, 3], lambda box: box[:, 3] / box[:, 2]):
        assert _ks(derive(ours), derive(theirs)) < KS_BOUND


@pytest.mark.parametrize("size", [(10, 400), (400, 10), (1, 1000), (1000, 1), (1, 1), (3, 2)])
def test_shapes_that_never_fit_take_torchvisions_centre_crop(size):
    spec = replace(ViewSpec.moco_v2(), area=(0.9, 1.0)) if min(size) > 3 else ViewSpec.moco_v2()
    numbers = uniforms(np.arange(50), seed=0, epoch=0, stream=0, count=22)
    boxes = draw_boxes(spec, numbers, np.tile(np.array(size, dtype=np.int32), (50, 1)))
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= np.array(size)).all()
    if max(size) / min(size) > 10:
        expected = RandomResizedCrop.get_params(torch.empty(1, *size), list(spec.area), list(spec.ratio))
        np.testing.assert_array_equal(boxes, np.tile(expected, (50, 1)))


@pytest.mark.parametrize("recipe", [ViewSpec.moco_v1, ViewSpec.moco_v2])
def test_factors_are_distributed_as_color_jitter_draws_them(recipe):
    spec = replace(recipe(), jitter=1.0)
    ours = draw_colour(spec, uniforms(np.arange(N), seed=12, epoch=0, stream=0, count=8))
    torch.manual_seed(1)
    jitter = ColorJitter(spec.brightness, spec.contrast, spec.saturation, spec.hue)
    ranges = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    drawn = [ColorJitter.get_params(*ranges) for _ in range(N)]
    for index, name in enumerate(("brightness", "contrast", "saturation", "hue"), start=1):
        theirs = np.array([parameters[index] for parameters in drawn])
        assert _ks(getattr(ours, name), theirs) < KS_BOUND
    assert (np.sort(ours.order, axis=1) == np.arange(4)).all()
    orders = np.unique(ours.order, axis=0, return_counts=True)[1]
    # chi-square with 23 degrees of freedom exceeds 60 once in 30,000
    assert len(orders) == 24
    assert ((orders - N / 24) ** 2 / (N / 24)).sum() < 60


def test_probabilities_and_ranges_are_the_papers():
    ids, sizes = np.arange(N), np.full((N, 2), 300, dtype=np.int32)
    numbers = uniforms(ids, seed=1, epoch=0, stream=0, count=8)
    v1, v2 = ViewSpec.moco_v1(), ViewSpec.moco_v2()
    five = 5 * np.sqrt(0.25 / N)  # five standard errors of a share, at most
    factors = draw_colour(v2, numbers)
    assert (factors.brightness != 1).mean() == pytest.approx(0.8, abs=five)
    np.testing.assert_array_equal(factors.brightness != 1, factors.hue != 0)  # one coin for the whole jitter
    assert factors.grey.mean() == pytest.approx(0.2, abs=five)
    assert np.abs(factors.hue).max() <= 0.1
    assert (draw_colour(v1, numbers).brightness != 1).all()
    assert 0.39 < np.abs(draw_colour(v1, numbers).hue).max() <= 0.4
    params = draw(v2, seed=1, epoch=0, ids=ids, sizes=sizes, view=0)
    blurred = params.sigma > 0
    assert blurred.mean() == pytest.approx(0.5, abs=five)
    assert params.flip.mean() == pytest.approx(0.5, abs=five)
    assert 0.1 <= params.sigma[blurred].min() < 0.11
    assert 1.99 < params.sigma.max() <= 2
    assert (draw(v1, seed=1, epoch=0, ids=ids, sizes=sizes, view=0).sigma == 0).all()


def test_a_draw_depends_on_its_own_place_alone():
    spec = ViewSpec.moco_v2()
    ids, sizes = np.arange(200), np.random.default_rng(0).integers(300, 400, (200, 2)).astype(np.int32)
    whole = draw(spec, seed=1, epoch=2, ids=ids, sizes=sizes, view=0)
    some = np.array([150, 3, 77])
    part = draw(spec, seed=1, epoch=2, ids=ids[some], sizes=sizes[some], view=0)
    for name in ("box", "flip", "sigma", "linear", "mean_gain"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[some])
    for other in ({"seed": 2}, {"epoch": 3}, {"view": 1}):
        changed = draw(spec, **{"seed": 1, "epoch": 2, "view": 0, **other}, ids=ids, sizes=sizes)
        assert (changed.box != whole.box).any(axis=1).mean() > 0.9


def test_array_types_are_as_promised():
    params = draw(ViewSpec.moco_v2(), seed=0, epoch=0, ids=np.arange(3), sizes=np.full((3, 2), 99), view=0)
    assert [params.box.dtype, params.flip.dtype, params.sigma.dtype] == [np.int32, np.bool_, np.float32]
    assert [params.linear.dtype, params.mean_gain.dtype] == [np.float32, np.float32]
    assert params.linear.shape == params.mean_gain.shape == (3, 3, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"image_size": 4}, "image_size 4"), ({"flip": 1.5}, "flip=1.5"), ({"area": (0.0, 1.0)}, "area")],
)
def test_impossible_numbers_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(ViewSpec.moco_v2(), **change)
