"""Sets in COCO's format: a folder of images and a JSON file of instances."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from fastmoco.detection.errors import DetectionError
from fastmoco.detection.photos import Photo, PhotoSet


def read_coco(name: str, images: Path, instances: Path) -> PhotoSet:
    """Read a set of photographs.

    Labels are 1, 2, … in the order of the categories' numbers. Crowds, and boxes without area, are not trained on.

    Args:
        name: as the user gave it.
        images: folder that the file names are relative to.
        instances: file with `images`, `annotations` and `categories`.

    Raises:
        DetectionError: a file or folder is missing, or the annotations are invalid.
    """
    if not images.is_dir():
        raise DetectionError(f"there is no folder of images {images}, which {name} names")
    content = _content(instances)
    try:
        # COCO's 80 categories have numbers up to 90; the detector needs consecutive labels
        categories = sorted((category["id"], category["name"]) for category in content["categories"])
        label_of = {number: label for label, (number, _) in enumerate(categories, 1)}
        of_image: dict[int, list[dict]] = {image["id"]: [] for image in content["images"]}
        unknown: dict[str, set] = defaultdict(set)
        for annotation in content["annotations"]:
            if annotation["category_id"] not in label_of:
                unknown["category"].add(annotation["category_id"])
            elif annotation["image_id"] not in of_image:
                unknown["image"].add(annotation["image_id"])
            else:
                of_image[annotation["image_id"]].append(annotation)
        for what, numbers in unknown.items():
            raise DetectionError(f"{instances} has annotations of the {what} {min(numbers)}, which it does not list")
        photos = tuple(_photo(images, image, of_image[image["id"]], label_of) for image in content["images"])
    except (KeyError, TypeError, ValueError) as error:
        # a DetectionError is a ValueError, too
        if isinstance(error, DetectionError):
            raise
        raise DetectionError(f"{instances} is no file of instances: {error!r} is missing or invalid") from error
    if not photos:
        raise DetectionError(f"{instances} lists no photograph; give a set that is not empty")
    numbers, names = zip(*categories, strict=True) if categories else ((), ())
    if not names:
        raise DetectionError(f"{instances} has no categories; give a file of instances")
    return PhotoSet(name, "coco", names, numbers, photos, instances)


def _content(instances: Path) -> dict[str, Any]:
    if not instances.is_file():
        raise DetectionError(f"there is no file of instances {instances}")
    try:
        content = json.loads(instances.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DetectionError(f"{instances} is no JSON: {error}") from error
    missing = [part for part in ("images", "annotations", "categories") if part not in content]
    if missing:
        raise DetectionError(f"{instances} has no {', '.join(missing)}; give a file of instances")
    return content


def _photo(images: Path, image: dict[str, Any], annotations: list[dict[str, Any]], label_of: dict[int, int]) -> Photo:
    boxes = np.array([one["bbox"] for one in annotations], np.float32).reshape(-1, 4)
    # COCO's boxes are left, top, width, height
    boxes[:, 2:] += boxes[:, :2]
    crowd = np.array([bool(one.get("iscrowd", 0)) for one in annotations], bool)
    sound = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return Photo(
        image["id"], images / image["file_name"], int(image["height"]), int(image["width"]), boxes,
        np.array([label_of[one["category_id"]] for one in annotations], np.int64), sound & ~crowd, crowd,
        tuple(_compact(one.get("segmentation")) for one in annotations),
    )  # fmt: skip


def _compact(outline: Any) -> Any:
    """Polygons of three points or more, as arrays: as lists of numbers, COCO's would take a gigabyte."""
    # crowds have run-length codes, which stay as they are
    if not isinstance(outline, list):
        return outline
    # pycocotools takes a list of four numbers for a box, not for a polygon of two points
    return tuple(np.asarray(polygon, float) for polygon in outline if len(polygon) >= 6)
