"""COCO's metrics on hand-made detections."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from fastmoco.detection.coco_metric import coco_metrics


def _diagonal(first: int) -> np.ndarray:
    """A line of 100 pixels in a box of 100 x 100: small by its mask, large by its box."""
    mask = np.zeros((128, 256), np.uint8)
    mask[np.arange(100), first + np.arange(100)] = 1
    return mask


def test_a_mask_is_small_by_its_own_area_and_not_by_its_boxs(tmp_path):
    tools = pytest.importorskip("pycocotools.mask")
    codes = []
    for first in (0, 120):
        code = tools.encode(np.asfortranarray(_diagonal(first)))
        codes.append({"size": code["size"], "counts": code["counts"].decode()})
    box = [0.0, 0.0, 100.0, 100.0]
    truth = {
        "images": [{"id": 1, "width": 256, "height": 128}],
        "categories": [{"id": 3, "name": "line"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "iscrowd": 0, "area": 100, "bbox": box, "segmentation": codes[0]}
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    shared = {"image_id": 1, "category_id": 3, "bbox": box}
    false, true = {**shared, "score": 0.9, "segmentation": codes[1]}, {**shared, "score": 0.5, "segmentation": codes[0]}
    photo_set = SimpleNamespace(truth=tmp_path / "truth.json")
    metrics = coco_metrics(photo_set, [false, true], "segm")
    # the false mask comes first, so precision is one half at every recall; a large one would not count here
    assert metrics["APs"] == pytest.approx(50) and metrics["AP"] == pytest.approx(50)
