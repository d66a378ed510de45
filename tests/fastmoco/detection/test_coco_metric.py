"""COCO's metrics on hand-made detections and on the annotations that users have."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from fastmoco.detection.coco import read_coco
from fastmoco.detection.coco_metric import as_results, coco_metrics
from fastmoco.detection.evaluation import evaluate
from fastmoco.detection.photos import run_lengths
from fastmoco.detection.voc_metric import Detections

tools = pytest.importorskip("pycocotools.mask")
ALL_FOUND = {"AP": 100, "AP50": 100, "AP75": 100}


def read(tmp_path, annotations, **image):
    """A set of one photograph of 256 x 128 pixels; its file is not read."""
    truth = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 256, "height": 128} | image],
        "categories": [{"id": 3, "name": "line"}],
        "annotations": annotations,
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    return read_coco("set", tmp_path, tmp_path / "truth.json")


def square(first, side=40, **fields):
    """An object with nothing but what an annotation needs."""
    return {"image_id": 1, "category_id": 3, "bbox": [first, 0, side, side]} | fields


def polygon(first, side=40):
    return {"segmentation": [[first, 0, first + side, 0, first + side, side, first, side]]}


def all_found(photo_set, masks=False):
    """Metrics of a detector that finds each object exactly."""
    detections = []
    for photo in photo_set.photos:
        sought = ~photo.ignored
        codes = None
        if masks:
            codes = tuple(
                run_lengths(outline, photo.height, photo.width) if outline else tools.encode(_empty(photo))
                for outline, wanted in zip(photo.outlines, sought, strict=True)
                if wanted
            )
        detections.append(
            Detections(photo.id, photo.boxes[sought], np.ones(int(sought.sum())), photo.labels[sought], codes)
        )
    return evaluate(photo_set, detections, masks)["coco"]


def _empty(photo):
    return np.zeros((photo.height, photo.width), np.uint8, order="F")


def _diagonal(first: int) -> np.ndarray:
    """A line of 100 pixels in a box of 100 x 100: small by its mask, large by its box."""
    mask = np.zeros((128, 256), np.uint8)
    mask[np.arange(100), first + np.arange(100)] = 1
    return mask


@pytest.mark.parametrize("recorded", [True, False])
def test_a_mask_is_small_by_its_own_area_and_not_by_its_boxs(tmp_path, recorded):
    codes = []
    for first in (0, 120):
        code = tools.encode(np.asfortranarray(_diagonal(first)))
        codes.append({"size": code["size"], "counts": code["counts"].decode()})
    box = [0.0, 0.0, 100.0, 100.0]
    area = {"area": 100} if recorded else {}
    photo_set = read(tmp_path, [{"image_id": 1, "category_id": 3, "bbox": box, "segmentation": codes[0]} | area])
    assert photo_set.as_coco(masks=True)["annotations"][0]["area"] == 100
    shared = {"image_id": 1, "category_id": 3, "bbox": box}
    false, true = {**shared, "score": 0.9, "segmentation": codes[1]}, {**shared, "score": 0.5, "segmentation": codes[0]}
    metrics = coco_metrics(photo_set, [false, true], "segm")
    # the false mask comes first, so precision is one half at every recall; a large one would not count here
    assert metrics["APs"] == pytest.approx(50) and metrics["AP"] == pytest.approx(50)


@pytest.mark.parametrize(
    "annotations",
    [
        [square(0), square(100)],
        [square(0, id=0), square(100, id=1)],
        [square(0, id=7), square(100, id=7), square(200, id=7)],
        [square(0, iscrowd=None, area=None, id=None), square(100, iscrowd=False, segmentation=None)],
        [square(0), square(100, 80, iscrowd=1)],
    ],
    ids=["no optional field", "numbered from 0", "one number for all", "nulls", "a crowd"],
)
def test_what_an_annotation_may_leave_out_changes_no_metric(tmp_path, annotations):
    metrics = all_found(read(tmp_path, annotations))["bbox"]
    assert {name: metrics[name] for name in ALL_FOUND} == pytest.approx(ALL_FOUND)


def test_an_outline_without_area_is_ignored_by_the_metrics_of_masks_alone(tmp_path):
    flat = square(100, segmentation=[[100, 0, 140, 40]])
    for empty in (flat, square(100, segmentation=[])):
        photo_set = read(tmp_path, [square(0, **polygon(0)), empty])
        metrics = all_found(photo_set, masks=True)
        assert [metrics[kind]["AP"] for kind in ("bbox", "segm")] == pytest.approx([100, 100])
        one = as_results(photo_set, [Detections(1, photo_set.photos[0].boxes[:1], np.ones(1), np.ones(1, int))])
        assert coco_metrics(photo_set, one, "bbox")["AP50"] == pytest.approx(100 * 51 / 101)  # one of two is found


WRONG = {
    "no box": ({"bbox": None}, "annotations[0] has no bbox; add it"),
    "three numbers": ({"bbox": [1, 2, 3]}, "bbox is [1, 2, 3], not four finite numbers"),
    "not a number": ({"bbox": [1, 2, 3, math.nan]}, "bbox is [1, 2, 3, nan], not four finite numbers"),
    "text": ({"bbox": ["1", 2, 3, 4]}, "bbox is ['1', 2, 3, 4], not four finite numbers"),
    "category by name": ({"category_id": "line"}, "category_id is 'line', not an integer"),
    "crowd": ({"iscrowd": "yes"}, "iscrowd is 'yes', not 0 or 1"),
    "area": ({"area": -1}, "area is -1, not a number of pixels"),
    "odd polygon": (
        {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]},
        "segmentation is [[1, 2, 3, 4, 5, 6, 7]], not a list of",
    ),
    "no counts": ({"segmentation": {"size": [128, 256]}}, "not a list of polygons"),
    "size of a code": (
        {"segmentation": {"size": [256, 128], "counts": [32768]}},
        "segmentation has the size [256, 128], but its image 1.jpg has [128, 256] (height, width); correct one of them",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_field_is_named_with_its_entry(tmp_path, mistake):
    fields, message = WRONG[mistake]
    with pytest.raises(ValueError) as raised:
        read(tmp_path, [square(0) | fields])
    assert str(raised.value).startswith(str(tmp_path / "truth.json")) and message in str(raised.value)


def test_a_repeated_number_of_images_or_categories_is_refused(tmp_path):
    read(tmp_path, [square(0)])
    content = json.loads((tmp_path / "truth.json").read_text())
    for part in ("images", "categories"):
        (tmp_path / "truth.json").write_text(json.dumps(content | {part: content[part] * 2}))
        number = content[part][0]["id"]
        with pytest.raises(ValueError, match=rf"{part}\[0\] and {part}\[1\] both have the id {number}; give each"):
            read_coco("set", tmp_path, tmp_path / "truth.json")
