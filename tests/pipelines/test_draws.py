"""Draws: pure functions of their place, distributed as torchvision's own samplers draw."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torchvision.transforms import (
    ColorJitter,
    GaussianBlur,
    Lambda,
    RandomApply,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomSolarize,
    RandomVerticalFlip,
)

from pipelines import PipelineError, ViewPair, ViewSpec, draw
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


@pytest.mark.parametrize(("ratio", "shape"), [((0.02, 0.05), (8, 1)), ((20.0, 50.0), (1, 8))])
def test_a_crop_has_a_pixel_at_least(ratio, shape):
    boxes = draw_boxes(
        ViewSpec(ratio=ratio), uniforms(np.arange(50), seed=11, epoch=0, stream=0, count=22), np.full((50, 2), 8)
    )
    np.testing.assert_array_equal(boxes[:, 2:], np.tile(shape, (50, 1)))


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


def test_blur_is_distributed_as_gaussian_blur_draws_it():
    spec = replace(ViewSpec.moco_v2(), blur=1.0)
    ours = draw(spec, seed=13, epoch=0, ids=np.arange(N), sizes=np.full((N, 2), 300), view=0).sigma
    torch.manual_seed(2)
    theirs = np.array([GaussianBlur.get_params(*spec.sigma) for _ in range(N)])
    assert _ks(ours, theirs) < KS_BOUND


@pytest.mark.parametrize("recipe", [ViewSpec.moco_v1, ViewSpec.moco_v2])
def test_flips_and_greys_are_as_frequent_as_torchvisions(recipe):
    """RandomGrayscale, RandomHorizontalFlip and others, seen by what they do to an image."""
    spec = replace(recipe(), vertical_flip=0.3, solarize=0.2)
    params = draw(spec, seed=14, epoch=0, ids=np.arange(N), sizes=np.full((N, 2), 300), view=0)
    factors = draw_colour(spec, uniforms(np.arange(N), seed=14, epoch=0, stream=0, count=8))
    torch.manual_seed(3)
    image = torch.arange(0, 240, 20, dtype=torch.uint8).reshape(3, 2, 2)
    inverse = Lambda(lambda x: 255 - x)
    theirs = {
        "grey": RandomGrayscale(spec.grey),
        "flip": RandomHorizontalFlip(spec.flip),
        "vertical_flip": RandomVerticalFlip(spec.vertical_flip),
        "solarize": RandomSolarize(128, spec.solarize),
        "jitter": RandomApply([inverse], spec.jitter),
        "blur": RandomApply([inverse], spec.blur),
    }
    ours = {
        "grey": factors.grey,
        "flip": params.flip,
        "vertical_flip": params.vertical_flip,
        "solarize": params.solarize,
        "jitter": factors.brightness != 1,
        "blur": params.sigma > 0,
    }
    for name, transform in theirs.items():
        share = np.mean([not torch.equal(transform(image), image) for _ in range(N)])
        # two shares, each with a standard error of at most 0.5 / sqrt(N): five of them
        assert ours[name].mean() == pytest.approx(share, abs=5 * np.sqrt(2 * 0.25 / N))


def test_the_centre_crop_is_taken_as_often_as_torchvision_takes_it():
    """For an image so wide that often none of ten shapes fits."""
    spec, size = replace(ViewSpec.moco_v2(), area=(0.5, 1.0)), (60, 130)
    numbers = uniforms(np.arange(N), seed=15, epoch=0, stream=0, count=22)
    ours = draw_boxes(spec, numbers, np.tile(np.array(size, dtype=np.int32), (N, 1)))
    torch.manual_seed(4)
    image = torch.empty(1, *size)
    theirs = np.array([RandomResizedCrop.get_params(image, list(spec.area), list(spec.ratio)) for _ in range(N)])
    fallback = [0, (130 - 80) // 2, 60, 80]  # 60 * 4 / 3
    shares = [(boxes == fallback).all(axis=1).mean() for boxes in (ours, theirs)]
    assert 0.2 < shares[1] < 0.8
    assert shares[0] == pytest.approx(shares[1], abs=5 * np.sqrt(2 * 0.25 / N))
    for column in range(4):
        assert _ks(ours[:, column], theirs[:, column]) < KS_BOUND


def test_numbers_of_a_view_and_of_its_other_view_are_unrelated():
    """Of each id: place and shape of the crop, colours, blur; in one view, and across the two."""
    spec = replace(ViewSpec.moco_v2(), jitter=1.0, blur=1.0)
    columns = []
    for view in (0, 1):
        place = {"seed": 16, "epoch": 1, "ids": np.arange(N)}
        box = draw(spec, **place, sizes=np.full((N, 2), 400), view=view).box.astype(float)
        factors = draw_colour(spec, uniforms(np.arange(N), seed=16, epoch=1, stream=view, count=8))
        sigma = draw(spec, **place, sizes=np.full((N, 2), 400), view=view).sigma
        room = 400 - box[:, 2:] + 1
        columns += [*(box[:, :2] / room).T, box[:, 2] * box[:, 3], box[:, 3] / box[:, 2], sigma]
        columns += [factors.brightness, factors.contrast, factors.saturation, factors.hue, factors.grey]
    correlation = np.corrcoef(columns) - np.eye(len(columns))
    # 190 correlations with a standard error of 1 / sqrt(N) each: five of them
    assert np.abs(correlation).max() < 5 / np.sqrt(N)


def test_probabilities_and_ranges_are_the_papers():
    ids, sizes = np.arange(N), np.full((N, 2), 300, dtype=np.int32)
    numbers = uniforms(ids, seed=1, epoch=0, stream=0, count=8)
    v1, v2 = ViewSpec.moco_v1(), ViewSpec.moco_v2()
    five = 5 * np.sqrt(0.25 / N)  # five standard errors of a share, at most
    factors = draw_colour(v2, numbers)
    assert (factors.brightness != 1).mean() == pytest.approx(0.8, abs=five)
    np.testing.assert_array_equal(factors.brightness != 1, factors.hue != 0)  # one decision for the whole jitter
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


def test_the_views_of_v3_are_those_of_its_code():
    """main_moco.py: blur always and seldom, solarization of the second view alone, the rest the same in both."""
    place = {"seed": 1, "epoch": 0, "ids": np.arange(N), "sizes": np.full((N, 2), 300)}
    pair, five = ViewPair.moco_v3(), 5 * np.sqrt(0.25 / N)
    query, key = (draw(spec, **place, view=view) for view, spec in enumerate(pair))
    assert (query.sigma > 0).all() and not query.solarize.any()
    assert (key.sigma > 0).mean() == pytest.approx(0.1, abs=five)
    assert key.solarize.mean() == pytest.approx(0.2, abs=five)
    for view, params in enumerate((query, key)):
        factors = draw_colour(pair.key, uniforms(np.arange(N), seed=1, epoch=0, stream=view, count=8))
        assert 0.19 < np.abs(factors.saturation - 1).max() <= 0.2
        assert 0.39 < np.abs(factors.contrast - 1).max() <= 0.4
        assert 0.39 < np.abs(factors.brightness - 1).max() <= 0.4
        assert 0.09 < np.abs(factors.hue).max() <= 0.1
        assert (factors.hue != 0).mean() == pytest.approx(0.8, abs=five)
        assert factors.grey.mean() == pytest.approx(0.2, abs=five)
        assert params.flip.mean() == pytest.approx(0.5, abs=five)
        assert not params.vertical_flip.any() and not params.transpose.any()
    area = query.box[:, 2] * query.box[:, 3] / 300**2
    assert 0.195 < area.min() < 0.22  # of whole pixels


def test_turns_are_as_frequent_as_each_other():
    spec = replace(ViewSpec.moco_v1(), flip=0.0, turns=0.6)
    params = draw(spec, seed=5, epoch=2, ids=np.arange(N), sizes=np.full((N, 2), 300), view=1)
    kinds = 4 * params.flip + 2 * params.vertical_flip + params.transpose
    shares = np.bincount(kinds, minlength=8) / N
    # none; a quarter to the right, half a turn, a quarter to the left
    expected = {0: 0.4, 0b011: 0.2, 0b110: 0.2, 0b101: 0.2}
    for kind, share in enumerate(shares):
        assert share == pytest.approx(expected.get(kind, 0.0), abs=5 * np.sqrt(0.25 / N))
        assert kind in expected or share == 0


@pytest.mark.parametrize("change", [{"solarize": 0.5}, {"vertical_flip": 0.5}, {"turns": 0.5}, {"grey": 0.9}])
def test_a_probability_leaves_the_other_draws_as_they_are(change):
    place = {"seed": 8, "epoch": 1, "ids": np.arange(N), "sizes": np.full((N, 2), 300), "view": 0}
    base = replace(ViewSpec.moco_v2(), flip=0.0, vertical_flip=0.2, solarize=0.2)
    before, after = draw(base, **place), draw(replace(base, **change), **place)
    own = {"solarize": ["solarize"], "vertical_flip": ["vertical_flip"], "grey": ["linear", "mean_gain"]}
    own["turns"] = ["flip", "vertical_flip", "transpose"]
    for name in (each.name for each in fields(before)):
        same = np.array_equal(getattr(before, name), getattr(after, name))
        assert same or name in own[next(iter(change))]
    # who was flipped with the smaller probability still is
    for name in ("solarize", "vertical_flip"):
        if name in change:
            assert (getattr(after, name) >= getattr(before, name)).all()


def test_numbers_of_solarization_and_turns_are_unrelated_to_the_others():
    ids = np.arange(N)
    streams = [uniforms(ids, seed=16, epoch=1, stream=stream, count=8) for stream in (0, 1)]
    streams += [uniforms(ids, seed=16, epoch=1, stream=stream, count=4) for stream in (2, 3)]
    columns = np.concatenate(streams, axis=1).T
    # 276 correlations with a standard error of 1 / sqrt(N) each: five of them
    assert np.abs(np.corrcoef(columns) - np.eye(len(columns))).max() < 5 / np.sqrt(N)


def test_a_draw_depends_on_its_own_place_alone():
    spec = replace(ViewSpec.moco_v2(), vertical_flip=0.5, turns=0.5, solarize=0.5)
    ids, sizes = np.arange(200), np.random.default_rng(0).integers(300, 400, (200, 2)).astype(np.int32)
    whole = draw(spec, seed=1, epoch=2, ids=ids, sizes=sizes, view=0)
    some = np.array([150, 3, 77])
    part = draw(spec, seed=1, epoch=2, ids=ids[some], sizes=sizes[some], view=0)
    for name in (each.name for each in fields(whole)):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[some])
    for other in ({"seed": 2}, {"epoch": 3}, {"view": 1}):
        changed = draw(spec, **{"seed": 1, "epoch": 2, "view": 0, **other}, ids=ids, sizes=sizes)
        assert (changed.box != whole.box).any(axis=1).mean() > 0.9


def test_array_types_are_as_promised():
    params = draw(ViewSpec.moco_v2(), seed=0, epoch=0, ids=np.arange(3), sizes=np.full((3, 2), 99), view=0)
    assert [params.box.dtype, params.flip.dtype, params.sigma.dtype] == [np.int32, np.bool_, np.float32]
    assert [params.linear.dtype, params.mean_gain.dtype] == [np.float32, np.float32]
    assert {params.vertical_flip.dtype, params.transpose.dtype, params.solarize.dtype} == {np.dtype(bool)}
    assert params.linear.shape == params.mean_gain.shape == (3, 3, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 4}, "image_size 4 is too small"),
        ({"flip": 1.5}, "flip=1.5 is not a probability"),
        ({"solarize": -0.1}, "solarize=-0.1 is not a probability"),
        ({"turns": float("nan")}, "turns=nan is not a probability"),
        ({"area": (0.0, 1.0)}, "area"),
        ({"ratio": (2.0, 1.0)}, r"ratio=\(2.0, 1.0\) must satisfy"),
        ({"sigma": (0.0, 1.0)}, r"sigma=\(0.0, 1.0\) must satisfy"),
        ({"contrast": -1.0}, "contrast=-1.0 is no strength"),
        ({"hue": 0.6}, r"hue=0.6 is outside \[0, 0.5\] turns"),
        ({"mean": (124.0, 116.0, 104.0)}, "levels divided by 255"),
        ({"std": (0.2, 0.2, 0.0)}, "std="),
    ],
)
def test_impossible_numbers_are_refused(change, message):
    with pytest.raises(PipelineError, match=message):
        replace(ViewSpec.moco_v2(), **change)


def test_both_views_have_one_size_and_one_normalisation():
    with pytest.raises(PipelineError, match="image_size is 64 for the query and 32 for the key: use one for both"):
        ViewPair(ViewSpec(64), ViewSpec(32))
    pair = ViewPair.of(ViewSpec.moco_v2(64))
    assert pair.query == pair.key == ViewSpec.moco_v2(64)
    assert ViewPair.of(pair) is pair and pair == ViewPair.moco_v2(64)
    assert pair.changed(grey=0.0) == ViewPair.of(replace(ViewSpec.moco_v2(64), grey=0.0))
