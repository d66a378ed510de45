"""The VOC metric against values worked out by hand, and against a second implementation of its definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastmoco.detection.photos import Photo, PhotoSet
from fastmoco.detection.voc_metric import THRESHOLDS, Detections, voc_metrics


def photo(number, objects):
    """`objects`: (label, box, difficult) each."""
    return Photo(
        number, Path(f"{number}.jpg"), 100, 100,
        np.array([box for _, box, _ in objects], np.float32).reshape(-1, 4),
        np.array([label for label, _, _ in objects], np.int64),
        np.ones(len(objects), bool), np.array([difficult for *_, difficult in objects], bool),
    )  # fmt: skip


def detections(number, entries):
    """`entries`: (label, box, score) each."""
    return Detections(
        number, np.array([box for _, box, _ in entries], float).reshape(-1, 4),
        np.array([score for *_, score in entries]), np.array([label for label, _, _ in entries]),
    )  # fmt: skip


def a_set(photos, classes=("cat", "dog")):
    return PhotoSet("made", "voc", classes, tuple(range(1, len(classes) + 1)), tuple(photos))


TRUTH = a_set(
    [
        photo(1, [(1, (10, 10, 30, 30), False), (1, (50, 50, 90, 90), True)]),
        photo(2, [(1, (0, 0, 40, 20), False), (2, (60, 60, 80, 80), False)]),
    ]
)
DETECTED = [
    # right (overlap 1); on a difficult object, which is ignored; a second detection of the same object
    detections(1, [(1, (10, 10, 30, 30), 0.9), (1, (50, 50, 90, 90), 0.8), (1, (11, 10, 30, 30), 0.7)]),
    # overlap 0.6: right up to the threshold 0.55, wrong from 0.6 on, where it is not above it; the dog is missed
    detections(2, [(1, (0, 0, 24, 20), 0.6)]),
]


def test_the_figures_are_those_worked_out_by_hand():
    metrics = voc_metrics(TRUTH, DETECTED)
    # cat, at 0.5: right, (ignored), wrong, right of 2 objects: precision 1 up to recall 1/2, then 2/3
    low_area, low_points = 1 / 2 * 1 + 1 / 2 * 2 / 3, (6 * 1 + 5 * 2 / 3) / 11
    # from 0.6 on the last one is wrong: precision 1 up to recall 1/2, then nothing
    high_area, high_points = 1 / 2, 6 / 11
    for name, low, high in (("area", low_area, high_area), ("11-point", low_points, high_points)):
        # the dog is found at no threshold, so the mean over both classes is half the cat's
        expected = {"AP50": 50 * low, "AP75": 50 * high, "AP": 50 * (2 * low + 8 * high) / 10}
        assert metrics[name] == pytest.approx(expected, abs=1e-9)


def test_difficult_objects_would_have_counted_otherwise():
    easy = a_set([photo(1, [(1, (10, 10, 30, 30), False), (1, (50, 50, 90, 90), False)]), TRUTH.photos[1]])
    assert voc_metrics(easy, DETECTED)["area"]["AP50"] == pytest.approx(50 * (2 / 3 + 1 / 3 * 3 / 4))


def test_classes_without_objects_take_no_part_and_nothing_found_is_zero():
    alone = a_set([photo(1, [(1, (10, 10, 30, 30), False), (2, (0, 0, 9, 9), True)])])
    assert voc_metrics(alone, [detections(1, [(1, (10, 10, 30, 30), 0.5)])])["area"]["AP"] == pytest.approx(100)
    assert voc_metrics(alone, [detections(1, [])])["11-point"] == {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
    assert voc_metrics(a_set([photo(1, [])]), [])["area"]["AP"] is None


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    sizes = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(sizes) - shared)


def plainly(truth, detected, threshold):
    """Mean over the classes of (11-point, area), object by object and point by point."""
    means = []
    for label in (1, 2):
        objects = {p.id: [(p.boxes[k], p.ignored[k]) for k in np.flatnonzero(p.labels == label)] for p in truth}
        total = sum(not ignored for of_one in objects.values() for _, ignored in of_one)
        every = [(f.image_id, *one) for f in detected for one in zip(f.boxes, f.scores, f.labels, strict=True)]
        ranked = [(score, number, box) for number, box, score, own in every if own == label]
        done, right, wrong, curve = set(), 0, 0, []
        for _, number, box in sorted(ranked, key=lambda entry: entry[0], reverse=True):
            overlaps = [overlap(box, one) for one, _ in objects[number]]
            place = max(range(len(overlaps)), key=lambda k: overlaps[k], default=None)
            if place is not None and overlaps[place] > threshold:
                if objects[number][place][1]:
                    continue
                if (number, place) not in done:
                    done.add((number, place))
                    right += 1
                    curve.append((right / total, right / (right + wrong)))
                    continue
            wrong += 1
        at_least = [max((p for r, p in curve if r >= point / 10 - 1e-12), default=0.0) for point in range(11)]
        steps = [max(p for r, p in curve[k:]) / total for k in range(len(curve))]
        means.append((sum(at_least) / 11, sum(steps)))
    return 100 * np.mean(means, 0)


def boxes(rng, count):
    corners = rng.uniform(0, 60, (count, 2))
    return np.concatenate([corners, corners + rng.uniform(10, 40, (count, 2))], 1)


@pytest.mark.parametrize("seed", range(4))
def test_random_detections_give_what_the_definition_gives(seed):
    rng = np.random.default_rng(seed)
    photos, detected = [], []
    for number in range(1, 9):
        truth = boxes(rng, 5)
        photos.append(photo(number, [(int(rng.integers(1, 3)), box, bool(rng.random() < 0.3)) for box in truth]))
        near = np.concatenate([truth + rng.normal(0, 3, truth.shape), truth + rng.normal(0, 1, truth.shape)])
        detected.append(detections(number, [(int(rng.integers(1, 3)), box, rng.random()) for box in near]))
    metrics = voc_metrics(a_set(photos), detected)
    expected = np.array([plainly(photos, detected, threshold) for threshold in THRESHOLDS])
    for place, name in enumerate(("11-point", "area")):
        column = expected[:, place]
        assert metrics[name] == pytest.approx({"AP": column.mean(), "AP50": column[0], "AP75": column[5]})
        assert 5 < metrics[name]["AP50"] < 95
