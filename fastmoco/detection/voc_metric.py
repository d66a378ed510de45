"""Average precision as Pascal VOC defines it (Everingham et al., IJCV 2010, section 4.2), at any overlap.

The conventions are those of detectron2's evaluator, which the paper used: a detection counts if its overlap is
*above* the threshold, and one that overlaps a `difficult` object most is neither right nor wrong. Unlike there, boxes
and scores are not rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastmoco.detection.photos import PhotoSet

THRESHOLDS = tuple(place / 100 for place in range(50, 100, 5))


@dataclass(frozen=True)
class Detections:
    """Detections in one photograph.

    Attributes:
        image_id: the photograph's number.
        boxes: float[D, 4] in pixels of the image in the file.
        scores: float[D].
        labels: int[D], from 1.
        codes: run-length codes of the masks, if masks were predicted.
    """

    image_id: int
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    codes: tuple[dict, ...] | None = None


def voc_metrics(photo_set: PhotoSet, detections: Sequence[Detections]) -> dict[str, dict[str, float | None]]:
    """AP, AP50 and AP75 in percent, by the metric of 2007 (11 points) and by the later one (area).

    AP is the mean over the overlaps 0.5, 0.55, …, 0.95. Classes without an object are left out; if all are, the metrics
    are None.
    """
    curves = {
        label: precision_recall(photo_set, detections, label, THRESHOLDS)
        for label in range(1, len(photo_set.classes) + 1)
    }
    present = [curve for curve in curves.values() if curve is not None]
    metrics = {}
    for name, average in (("11-point", eleven_points), ("area", area)):
        if not present:
            metrics[name] = {"AP": None, "AP50": None, "AP75": None}
            continue
        by_threshold = 100 * np.array([[average(*one) for one in curve] for curve in present]).mean(0)
        metrics[name] = {
            "AP": float(by_threshold.mean()), "AP50": float(by_threshold[0]), "AP75": float(by_threshold[5])
        }  # fmt: skip
    return metrics


def precision_recall(
    photo_set: PhotoSet, detections: Sequence[Detections], label: int, thresholds: Sequence[float]
) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Recall and precision after each detection of a class, by falling score, at each threshold.

    None if the set has no object of the class that counts.
    """
    truth = {}
    for photo in photo_set.photos:
        which = photo.labels == label
        truth[photo.id] = photo.boxes[which].astype(float), photo.ignored[which]
    objects = sum(int((~ignored).sum()) for _, ignored in truth.values())
    if objects == 0:
        return None
    ranked = [
        (score, one.image_id, box)
        for one in detections
        for score, box in zip(one.scores[one.labels == label], one.boxes[one.labels == label], strict=True)
    ]
    # a stable sort: detections of equal score keep the set's order, so ties do not change the result
    ranked.sort(key=lambda entry: -entry[0])
    # once for all thresholds: which object a box overlaps most does not depend on them
    best = [_best_match(truth[image_id][0], np.asarray(box, float)) for _, image_id, box in ranked]
    return [_curve(truth, objects, [e[1] for e in ranked], best, threshold) for threshold in thresholds]


def _curve(truth, objects: int, image_ids: list[int], best, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    taken: set[tuple[int, int]] = set()
    right, wrong = np.zeros(len(best)), np.zeros(len(best))
    for rank, (image_id, (place, overlap)) in enumerate(zip(image_ids, best, strict=True)):
        # the order of these cases is the definition: an ignored object is asked for before a detected one, so it
        # absorbs any number of detections
        if overlap <= threshold:
            wrong[rank] = 1
        elif truth[image_id][1][place]:
            continue
        elif (image_id, place) in taken:
            wrong[rank] = 1
        else:
            taken.add((image_id, place))
            right[rank] = 1
    right, wrong = right.cumsum(), wrong.cumsum()
    # the first detections may all be ignored: 0 of 0
    return right / objects, right / np.maximum(right + wrong, np.finfo(float).eps)


def _best_match(boxes_N4: np.ndarray, box: np.ndarray) -> tuple[int, float]:
    """Index and overlap of the object that a box overlaps most; an overlap of -inf if there is none."""
    if not len(boxes_N4):
        return -1, -np.inf
    # no + 1 for a last pixel: right and lower edges are exclusive here
    sides = np.minimum(boxes_N4[:, 2:], box[2:]) - np.maximum(boxes_N4[:, :2], box[:2])
    shared = sides.clip(0).prod(1)
    overlaps = shared / ((boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - shared)
    place = int(overlaps.argmax())
    return place, float(overlaps[place])


def eleven_points(recall: np.ndarray, precision: np.ndarray) -> float:
    """Mean over the recalls 0, 0.1, …, 1 of the greatest precision at that recall or a higher one (VOC 2007)."""
    points = [
        precision[recall >= point / 10] for point in range(11)
    ]  # not point × 0.1: 3 × 0.1 exceeds a recall of 3 in 10
    return float(np.mean([point.max() if len(point) else 0.0 for point in points]))


def area(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area below the curve of the greatest precision at each recall or a higher one (VOC 2010 and later)."""
    edges = np.concatenate([[0.0], recall])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(edges) * envelope).sum())
