"""Average precision by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from fastmoco.detection._tools import evaluators
from fastmoco.detection.photos import PhotoSet
from fastmoco.detection.voc_metric import Detections

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def as_results(photo_set: PhotoSet, detections: Sequence[Detections]) -> list[dict[str, Any]]:
    """Detections in COCO's results format: box as left, top, width, height; mask as run-length code."""
    results = []
    for one in detections:
        for place, (box, score, label) in enumerate(zip(one.boxes, one.scores, one.labels, strict=True)):
            left, top, right, bottom = (float(edge) for edge in box)
            result = {
                "image_id": one.image_id, "category_id": photo_set.categories[int(label) - 1],
                "bbox": [left, top, right - left, bottom - top], "score": float(score),
            }  # fmt: skip
            if one.codes is not None:
                result["segmentation"] = one.codes[place]
            results.append(result)
    return results


def coco_metrics(photo_set: PhotoSet, results: list[dict[str, Any]], kind: str) -> dict[str, float | None]:
    """AP over the overlaps 0.5 … 0.95, AP50, AP75, and AP of small, medium and large objects, in percent.

    A metric is None if the set has no such object.

    Args:
        photo_set: the ground truth; `difficult` objects of a VOC-format set count as crowds.
        results: as `as_results` returns them.
        kind: `bbox` or `segm`.

    Raises:
        DetectionError: pycocotools is not installed.
    """
    COCO, COCOeval = evaluators()
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = _indexed(COCO(), photo_set.as_coco(kind == "segm"))
        listed = {name: truth.dataset[name] for name in ("images", "categories")}
        if kind == "segm":
            # with both, loadRes sorts a mask into small, medium and large by the area of its box
            results = [{name: value for name, value in result.items() if name != "bbox"} for result in results]
        # loadRes fails on an empty list
        detected = truth.loadRes(results) if results else _indexed(COCO(), {**listed, "annotations": []})
        evaluation = COCOeval(truth, detected, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = zip(_METRICS, evaluation.stats[: len(_METRICS)].tolist(), strict=True)
    # pycocotools writes −1 where there is no object
    return {name: 100 * value if value >= 0 else None for name, value in metrics}


def _indexed(coco: Any, dataset: dict[str, Any]) -> Any:
    coco.dataset = dataset
    coco.createIndex()
    return coco
