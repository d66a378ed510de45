"""Draws and views of v1 and v2 stay what they were, so that runs of earlier versions continue with the same ones."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest

from pipelines import ViewSpec, draw
from pipelines.colour import Colours
from pipelines.torch_cpu import make_view

PLACES = [(0, 0, np.arange(64)), (7, 3, np.arange(10**9, 10**9 + 64)), (2**40 + 1, 199, 3 * np.arange(64) + (1 << 50))]
"""(seed, epoch, ids)"""
RECIPES = {"v1": ViewSpec.moco_v1, "v2": ViewSpec.moco_v2}
DRAWS = {
    ("v1", 0): "884f147f9cf12748c21f46405284b57fc0f3961ea98c5d1d60d6366da44ba1cb",
    ("v1", 1): "746e5aaaa186e43cb6fbf48b4a417c408f9a590588562d11d2de28d6471530a5",
    ("v2", 0): "8549c7ad5bea46ddb8c5688fba24bd6d5d83f5055520960aa86b0f0af3cf8151",
    ("v2", 1): "73d2cc3a9a56f45c48a8d6785a34655d00babef4572e1c01ce00401a636205d6",
}
LEVELS = {
    ("v1", 0): "5c8f9d8940c2d36c551878a559cb1c3afa05af0074e01270c0954bdd1be15b7b",
    ("v1", 1): "9331708c9dc98b79ec83b5a630306f641fcee03d22f034b87d59e9822838aed5",
    ("v2", 0): "93dd7a80a95f600a8568af69da999d4054f7f9104c46b601ca8e530ae54337bb",
    ("v2", 1): "d1718a1130cb748247800a16c0af9b50abcb9ec531efcedd571200498ca3c3f8",
}
MEANS = {
    ("v1", 0): [0.24736481, 0.47388402],
    ("v1", 1): [0.3344532, 0.4596019],
    ("v2", 0): [0.22571792, 0.42144195],
    ("v2", 1): [0.2893425, 0.44953069],
}


def _sizes(ids):
    return np.stack((200 + ids * 7919 % 400, 200 + ids * 104729 % 400), axis=1).astype(np.int32)


def _drawn(recipe, view, size=224):
    for seed, epoch, ids in PLACES:
        yield draw(RECIPES[recipe](size), seed=seed, epoch=epoch, ids=ids, sizes=_sizes(ids), view=view)


def _image(height, width):
    """A pattern with edges of all directions, in whole numbers: the same on every machine."""
    y, x, channel = np.indices((height, width, 3))
    return ((x * (3 + channel) + y * (5 - channel) + x * y // 16) % 256).astype(np.uint8)


@pytest.mark.parametrize(("recipe", "view"), DRAWS)
def test_draws_are_those_of_earlier_versions(recipe, view):
    digest = sha256()
    for params in _drawn(recipe, view):
        for name in ("box", "sigma", "flip", "linear", "mean_gain"):
            digest.update(getattr(params, name).tobytes())
    assert digest.hexdigest() == DRAWS[recipe, view]


@pytest.mark.parametrize(("recipe", "view"), LEVELS)
def test_views_are_those_of_earlier_versions(recipe, view):
    digest, size = sha256(), 48
    spec, means = RECIPES[recipe](size), []
    for params, (_, _, ids) in zip(_drawn(recipe, view, size), PLACES, strict=True):
        sizes, colours = _sizes(ids), Colours.of(params, spec, size**2)
        for slot in range(8):
            image = _image(*sizes[slot].tolist())
            levels, values = np.empty((size, size, 3), np.uint8), np.empty((size, size, 3), np.float32)
            make_view(image, params, slot, levels)
            make_view(image, params, slot, values, colours=colours)
            digest.update(levels.tobytes())
            means.append(values.mean(dtype=np.float64))
    assert digest.hexdigest() == LEVELS[recipe, view]
    # processors that fuse a product and its sum, or do not, differ in the last bits of float32
    np.testing.assert_allclose([np.mean(means), np.std(means)], MEANS[recipe, view], rtol=0, atol=1e-6)
