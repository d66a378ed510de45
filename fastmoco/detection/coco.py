"""Sets in COCO's format: a folder of images and a JSON file of instances.

Everything that training or the metrics read is checked here, so that no mistake is found after the training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastmoco.detection.errors import DetectionError
from fastmoco.detection.photos import Photo, PhotoSet
from shards.words import one_form

_PARTS = ("images", "annotations", "categories")
_Check = Callable[[Any], bool]


def read_coco(name: str, images: Path, instances: Path) -> PhotoSet:
    """Read a set of photographs.

    Labels are 1, 2, … in the order of the categories' numbers. Crowds, and boxes without area, are not trained on.
    An annotation needs `image_id`, `category_id` and `bbox`; `segmentation`, `iscrowd` and `area` are optional, and its
    `id` is not used. An image needs `id` and `file_name`; its `height` and `width` are optional.

    Args:
        name: as the user gave it.
        images: folder that the file names are relative to.
        instances: file with `images`, `annotations` and `categories`.

    Raises:
        DetectionError: a file or folder is missing, or an entry is invalid; the message names the entry.
    """
    if not images.is_dir():
        raise DetectionError(f"there is no folder of images {images}, which {name} names")
    content = _content(instances)
    categories = sorted(
        (
            _value(instances, "categories", place, one, "id"),
            one_form(_value(instances, "categories", place, one, "name")),
        )
        for place, one in enumerate(content["categories"])
    )
    if not categories:
        raise DetectionError(f"{instances} has no categories; give a file of instances")
    # COCO's 80 categories have numbers up to 90; the detector needs consecutive labels
    label_of = {number: label for label, (number, _) in enumerate(categories, 1)}
    of_image: dict[int, list[tuple[int, dict]]] = {
        _value(instances, "images", place, one, "id"): [] for place, one in enumerate(content["images"])
    }
    for part, numbers in (("categories", label_of), ("images", of_image)):
        if len(numbers) < len(content[part]):
            raise DetectionError(_repeated(instances, part, content[part]))
    for place, one in enumerate(content["annotations"]):
        category, image = (_value(instances, "annotations", place, one, key) for key in ("category_id", "image_id"))
        if category not in label_of:
            raise DetectionError(f"{instances} has annotations of the category {category}, which it does not list")
        if image not in of_image:
            raise DetectionError(f"{instances} has annotations of the image {image}, which it does not list")
        of_image[image].append((place, one))
    photos = tuple(
        _photo(instances, images, place, image, of_image[image["id"]], label_of)
        for place, image in enumerate(content["images"])
    )
    if not photos:
        raise DetectionError(f"{instances} lists no photograph; give a set that is not empty")
    numbers, names = zip(*categories, strict=True)
    return PhotoSet(name, "coco", names, numbers, photos)


def _content(instances: Path) -> dict[str, Any]:
    if not instances.is_file():
        raise DetectionError(f"there is no file of instances {instances}")
    try:
        content = json.loads(instances.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DetectionError(f"{instances} is no JSON: {error}") from error
    missing = [part for part in _PARTS if not isinstance(content, dict) or part not in content]
    if missing:
        raise DetectionError(f"{instances} has no {', '.join(missing)}; give a file of instances")
    for part in _PARTS:
        if not isinstance(content[part], list):
            raise DetectionError(f"{instances}: {part} is no list; give a file of instances")
    return content


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return (_whole(value) or isinstance(value, float)) and math.isfinite(value)


def _polygon(value: Any) -> bool:
    return isinstance(value, list) and len(value) % 2 == 0 and all(map(_number, value))


def _outline(value: Any) -> bool:
    """Whether it is a list of polygons, or a run-length code: a list of counts or pycocotools' text."""
    if isinstance(value, list):
        return all(map(_polygon, value))
    if not isinstance(value, dict) or not _list_of(2, _whole)(value.get("size")):
        return False
    counts = value.get("counts")
    return (isinstance(counts, str) and counts.isascii()) or (isinstance(counts, list) and all(map(_whole, counts)))


def _list_of(count: int, check: _Check) -> _Check:
    return lambda value: isinstance(value, list) and len(value) == count and all(map(check, value))


_WHOLE: tuple[_Check, str] = (_whole, "an integer")
_TEXT: tuple[_Check, str] = (lambda value: isinstance(value, str) and value != "", "a name")
_SIDE: tuple[_Check, str] = (lambda value: _whole(value) and value > 0, "a number of pixels")
_FIELDS: dict[str, tuple[_Check, str]] = {
    "id": _WHOLE,
    "image_id": _WHOLE,
    "category_id": _WHOLE,
    "name": _TEXT,
    "file_name": _TEXT,
    "height": _SIDE,
    "width": _SIDE,
    "bbox": (_list_of(4, _number), "four finite numbers: left, top, width, height"),
    "iscrowd": (lambda value: value in (0, 1), "0 or 1"),
    "area": (lambda value: _number(value) and value >= 0, "a number of pixels"),
    "segmentation": (_outline, "a list of polygons (each x, y, x, y, …) or a run-length code"),
}


def _value(instances: Path, part: str, place: int, entry: Any, key: str, *default: Any) -> Any:
    """A field of an entry; the default, where one is given, if the field is absent or null."""
    where = f"{instances}: {part}[{place}]"
    if not isinstance(entry, dict):
        raise DetectionError(f"{where} is {entry!r:.80}, not an object with fields")
    value = entry.get(key)
    if value is None:
        if default:
            return default[0]
        raise DetectionError(f"{where} has no {key}; add it")
    check, wanted = _FIELDS[key]
    if not check(value):
        raise DetectionError(f"{where}: {key} is {value!r:.80}, not {wanted}; correct it")
    return value


def _repeated(instances: Path, part: str, entries: list[dict[str, Any]]) -> str:
    first: dict[int, int] = {}
    number, place = next((one["id"], at) for at, one in enumerate(entries) if first.setdefault(one["id"], at) != at)
    return (
        f"{instances}: {part}[{first[number]}] and {part}[{place}] both have the id {number}; give each its own, and "
        "correct the annotations that refer to it"
    )


def _photo(
    instances: Path,
    images: Path,
    place: int,
    image: dict[str, Any],
    annotations: list[tuple[int, dict[str, Any]]],
    label_of: dict[int, int],
) -> Photo:
    def field(key: str, *default: Any) -> list[Any]:
        return [_value(instances, "annotations", at, one, key, *default) for at, one in annotations]

    file_name = _value(instances, "images", place, image, "file_name")
    height, width = (_value(instances, "images", place, image, side, 0) for side in ("height", "width"))
    boxes = np.array(field("bbox"), np.float32).reshape(-1, 4)
    # COCO's boxes are left, top, width, height
    boxes[:, 2:] += boxes[:, :2]
    crowd = np.array(field("iscrowd", 0), bool)
    sound = (boxes[:, 2:] > boxes[:, :2]).all(1)
    outlines = field("segmentation", None)
    for (at, _), outline in zip(annotations, outlines, strict=True):
        if isinstance(outline, dict) and height and width and outline["size"] != [height, width]:
            raise DetectionError(
                f"{instances}: annotations[{at}]: segmentation has the size {outline['size']}, but its image "
                f"{file_name} has {[height, width]} (height, width); correct one of them"
            )
    return Photo(
        image["id"], images / file_name, height, width, boxes,
        np.array([label_of[one["category_id"]] for _, one in annotations], np.int64), sound & ~crowd, crowd,
        tuple(map(_compact, outlines)),
        np.array(field("area", math.nan), np.float64),
    )  # fmt: skip


def _compact(outline: Any) -> Any:
    """Polygons of three points or more, as arrays: as lists of numbers, COCO's would take a gigabyte."""
    # crowds have run-length codes, which stay as they are
    if not isinstance(outline, list):
        return outline
    # pycocotools takes a list of four numbers for a box, not for a polygon of two points
    return tuple(np.asarray(polygon, float) for polygon in outline if len(polygon) >= 6)
