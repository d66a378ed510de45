"""Small transfers on made scenes (`tests/support/scenes.py`)."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fastmoco.detection.settings import recipe
from fastmoco.ranks.world import World
from tests.support.runs import resnet10_of
from tests.support.scenes import CATEGORIES, CLASSES, SIDE, scenes, write_coco, write_voc

TRAIN, VAL = 192, 8
SMALL = {
    "classes": CLASSES, "arch": "resnet10", "batch_size": 4, "warmup": 5, "milestones": (38,), "min_sizes": (80,),
    "test_size": 80, "max_size": 128, "anchor_sizes": (24, 28, 32, 40, 48), "rois_per_image": 24, "test_proposals": 30,
    "fpn_channels": 32, "threads": 1, "log_every": 1,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def narrow():
    """The smallest encoder with a quarter of its channels."""
    with resnet10_of(1 / 4):
        yield


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """`voc` (splits trainval, more and test) and `coco` (train and val) with the same scenes."""
    root = tmp_path_factory.mktemp("detection")
    write_voc(root / "voc", {"trainval": (0, TRAIN // 2), "more": (TRAIN // 2, TRAIN // 2), "test": (1000, VAL)})
    write_coco(root / "coco", {"train": (0, TRAIN), "val": (1000, VAL)})
    return root


@pytest.fixture(scope="session")
def made(folders):
    """The folders, settings of small transfers on them, and what the scenes hold."""
    voc, coco = folders / "voc", folders / "coco"
    places = {
        "voc": {"train": (f"{voc}:trainval", f"{voc}:more"), "val": f"{voc}:test"},
        "coco": {"train": (f"{coco}:train",), "val": f"{coco}:val"},
    }

    def settings(name, out, **more):
        return replace(recipe(name), out=out, **places[name.split("-")[0]] | SMALL | more)

    return SimpleNamespace(
        voc=voc, coco=coco, settings=settings, scenes=scenes, classes=CLASSES, categories=CATEGORIES, side=SIDE,
        train=TRAIN, val=VAL, here=World(0, 1, torch.device("cpu")),
    )  # fmt: skip
