"""Folders in Pascal VOC's format: JPEGImages/, Annotations/, ImageSets/Main/SPLIT.txt."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from fastmoco.detection.errors import DetectionError
from fastmoco.detection.photos import Photo
from shards.words import one_form

_SUFFIXES = (".jpg", ".jpeg", ".JPG", ".png")


def read_voc(folder: Path, split: str, classes: tuple[str, ...], first_id: int = 1) -> list[Photo]:
    """Read the photographs of one split.

    Coordinates in the files count from 1 and include the last pixel, so 1 is subtracted from the left and upper edges.
    Objects marked `difficult` are trained on, as in detectron2, and ignored by the metrics.

    Args:
        folder: such as VOC2007.
        split: such as trainval, for ImageSets/Main/trainval.txt, whose lines begin with a photograph's name.
        classes: all classes, in the order of the labels.
        first_id: number of the first photograph.

    Raises:
        DetectionError: a file is missing or damaged, or has an object of a class that is not in `classes`.
    """
    listing = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not listing.is_file():
        known = ", ".join(sorted(path.stem for path in listing.parent.glob("*.txt"))[:8]) or "none"
        raise DetectionError(f"there is no {listing}; splits of {folder}: {known}")
    names = [line.split()[0] for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise DetectionError(f"{listing} lists no photograph; give a split that is not empty")
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DetectionError(f"{listing} lists {twice} twice; remove one of the lines")
    return [_photo(folder, name, classes, first_id + place) for place, name in enumerate(names)]


def _photo(folder: Path, name: str, classes: tuple[str, ...], number: int) -> Photo:
    annotation = folder / "Annotations" / f"{name}.xml"
    if not annotation.is_file():
        raise DetectionError(
            f"there is no annotation {annotation} of the photograph {name}; add it, or drop the name from the split"
        )
    try:
        root = ElementTree.parse(annotation).getroot()
        # through float: some of VOC's files have numbers with decimals. 0 stands for a size that is not recorded
        height, width = (int(float(root.findtext(f"size/{side}", "0"))) for side in ("height", "width"))
        objects = [_object(element) for element in root.findall("object")]
    except (ElementTree.ParseError, ValueError, TypeError) as error:
        raise DetectionError(f"{annotation} is invalid: {error}; correct it") from error
    for label, box, _ in objects:
        if label not in classes:
            raise DetectionError(
                f"{annotation} has an object of the class {label!r}, which is not in --classes {' '.join(classes)}; "
                "name all classes of the set"
            )
        # "not": NaN is neither greater nor smaller
        if not (box[2] > box[0] and box[3] > box[1] and all(map(math.isfinite, box))):
            raise DetectionError(f"{annotation} has a {label} whose box {box} has no area; correct it")
    return Photo(
        number, _image(folder, name), height, width,
        np.array([box for _, box, _ in objects], np.float32).reshape(-1, 4),
        np.array([classes.index(label) + 1 for label, _, _ in objects], np.int64),
        np.ones(len(objects), bool),
        np.array([difficult for _, _, difficult in objects], bool),
    )  # fmt: skip


def _object(element: Element) -> tuple[str, tuple[float, ...], bool]:
    """Class, box, and whether the object is difficult."""
    left, top, right, bottom = (
        # a missing side becomes text that float refuses, and so the error names it
        float(element.findtext(f"bndbox/{side}", "no number"))
        for side in ("xmin", "ymin", "xmax", "ymax")
    )
    difficult = element.findtext("difficult", "0").strip() == "1"
    return one_form(element.findtext("name", "").strip()), (left - 1, top - 1, right, bottom), difficult


def _image(folder: Path, name: str) -> Path:
    paths = [folder / "JPEGImages" / f"{name}{suffix}" for suffix in _SUFFIXES]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise DetectionError(
            f"there is no photograph {paths[0]}, which the split names; add it, or drop the name from the split"
        )
    return found
