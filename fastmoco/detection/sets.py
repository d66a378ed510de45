"""Open the sets that a user names: detect a folder's format, join training sets, check the two sets of a transfer."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from fastmoco.detection.coco import read_coco
from fastmoco.detection.errors import DetectionError
from fastmoco.detection.photos import PhotoSet
from fastmoco.detection.settings import DetectSettings
from fastmoco.detection.voc import read_voc
from shards.words import one_form

log = logging.getLogger(__name__)


def open_set(name: str, classes: tuple[str, ...], first_id: int = 1) -> PhotoSet:
    """Open one set by its name.

    Args:
        name: FOLDER:SPLIT, where the folder has ImageSets/Main/SPLIT.txt (VOC) or annotations/instances_SPLIT.json and
            the images in SPLIT/ (COCO); or IMAGES:INSTANCES.json.
        classes: of a VOC-format set.
        first_id: number of the first photograph of a VOC-format set.

    Raises:
        DetectionError: the set is missing or invalid.
    """
    # the last colon: paths may have others
    place, colon, split = name.rpartition(":")
    if not (place and colon and split):
        raise DetectionError(
            f"{name!r} names no set; write FOLDER:SPLIT, as VOC2007:trainval, or IMAGES:INSTANCES.json"
        )
    folder = Path(place)
    if not folder.is_dir():
        raise DetectionError(f"there is no folder {folder}, which {name} names")
    if split.endswith(".json"):
        return read_coco(name, folder, Path(split))
    if (folder / "ImageSets").is_dir():
        classes = tuple(map(one_form, classes))
        photos = read_voc(folder, split, classes, first_id)
        return PhotoSet(name, "voc", classes, tuple(range(1, len(classes) + 1)), tuple(photos))
    instances = folder / "annotations" / f"instances_{split}.json"
    if instances.parent.is_dir():
        return read_coco(name, folder / split, instances)
    raise DetectionError(
        f"{folder} has neither ImageSets/ (as VOC) nor annotations/ (as COCO); give the folder of a set"
    )


def open_sets(settings: DetectSettings) -> tuple[PhotoSet, PhotoSet]:
    """Open the training set, without photographs that have nothing to train on, and the test set.

    Raises:
        DetectionError: one is missing or empty, they differ in classes, or masks are trained without outlines.
    """
    if not settings.train or not settings.val:
        raise DetectionError("give --train SET [SET …] and --val SET, each as FOLDER:SPLIT or IMAGES:INSTANCES.json")
    parts: list[PhotoSet] = []
    for name in settings.train:
        # numbered on, so that no two photographs of the joined set have one number
        parts.append(open_set(name, settings.classes, 1 + sum(len(part.photos) for part in parts)))
    val = open_set(settings.val, settings.classes)
    for part in parts:
        if (part.classes, part.categories) != (val.classes, val.categories):
            odd = sorted(set(part.classes) ^ set(val.classes)) or ["their numbers"]
            raise DetectionError(f"{part.name} and {val.name} differ in their classes, by {', '.join(odd[:5])}")
    for part in (*parts, val) if settings.mask else ():
        if not part.has_outlines:
            raise DetectionError(f"{part.name} has objects without outlines, which --mask needs; use --no-mask")
        unsized = next((photo for photo in part.photos if not (photo.height and photo.width)), None)
        if unsized is not None:
            raise DetectionError(f"{part.name} records no height and width of {unsized.path.name}, which --mask needs")
    if not any((~photo.ignored).any() for photo in val.photos):
        raise DetectionError(f"--val {val.name} has no object to find, so no precision could be computed")
    return _trainable(" ".join(settings.train), parts, settings.mask), val


def _trainable(name: str, parts: list[PhotoSet], masks: bool) -> PhotoSet:
    """The sets joined, without empty photographs; for masks, without objects whose outline has no area."""
    together = [photo for part in parts for photo in part.photos]
    objects = sum(int(photo.trained.sum()) for photo in together)
    if masks:
        together = [replace(photo, trained=photo.trained & photo.outlined) for photo in together]
    # as detectron2's FILTER_EMPTY_ANNOTATIONS: a photograph without objects has no boxes to match
    useful = tuple(photo for photo in together if photo.trained.any())
    if not useful:
        raise DetectionError(f"--train {name} has no object to train on")
    lost, empty = objects - sum(int(photo.trained.sum()) for photo in useful), len(together) - len(useful)
    if lost or empty:
        log.info(
            "left out of %s: %d objects whose outline has no area, %d photographs without objects", name, lost, empty
        )
    return replace(parts[0], name=name, photos=useful)
