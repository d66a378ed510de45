"""An annotated photograph, and a set of them, the same for VOC and COCO.

N: objects of a photograph. Boxes are (left, top, right, bottom) in pixels. The right and lower edges are exclusive, so
that a width is right − left.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastmoco.detection._tools import masks as mask_tools
from fastmoco.detection.errors import BrokenImage


@dataclass(frozen=True)
class Photo:
    """One annotated photograph.

    Attributes:
        id: number in its set, under which detections are reported.
        path: its file.
        height: in pixels; 0 if the annotation does not record it.
        width: the same.
        boxes: float32[N, 4].
        labels: int64[N], 1 for the first class; 0 is the background.
        trained: bool[N], whether the object is trained on.
        ignored: bool[N], whether the metrics ignore the object (`difficult` in VOC, crowds in COCO).
        outlines: one for each object: polygons, each float64[2P] of alternating x and y, possibly none with an area; or
            a run-length code in COCO's form; or None if the annotation has no outline. None for VOC.
        areas: float64[N], by which the metrics call an object small, medium or large; NaN where the annotation does not
            record it. None for VOC.
    """

    id: int
    path: Path
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    trained: np.ndarray
    ignored: np.ndarray
    outlines: tuple[Any, ...] | None = None
    areas: np.ndarray | None = None

    @property
    def outlined(self) -> np.ndarray:
        """bool[N], whether there is an outline to train on."""
        return np.array([bool(outline) for outline in self.outlines or [None] * len(self.labels)], bool)

    def area(self, place: int) -> float:
        """Area of an object in pixels: as recorded, else of its outline, else of its box."""
        if self.areas is not None and np.isfinite(self.areas[place]):
            return float(self.areas[place])
        outline = self.outlines[place] if self.outlines is not None else None
        if outline and self.height and self.width:
            return float(mask_tools().area(run_lengths(outline, self.height, self.width)))
        left, top, right, bottom = self.boxes[place].tolist()
        return (right - left) * (bottom - top)

    def masks(self, which: np.ndarray, height: int, width: int) -> np.ndarray:
        """uint8[M, height, width], 1 within the objects selected by `which` (bool[N], M of them true).

        Raises:
            BrokenImage: an outline is invalid.
        """
        assert self.outlines is not None
        found = [self._mask(self.outlines[place], height, width) for place in np.flatnonzero(which)]
        return np.stack(found) if found else np.zeros((0, height, width), np.uint8)

    def _mask(self, outline: Any, height: int, width: int) -> np.ndarray:
        try:
            mask = mask_tools().decode(run_lengths(outline, height, width))
        except (TypeError, KeyError, ValueError, IndexError) as error:
            raise BrokenImage(f"the outline of an object of {self.path} is no polygon or run-length code") from error
        if mask.shape != (height, width):
            raise BrokenImage(
                f"the outline of an object of {self.path} is for {mask.shape[1]} × {mask.shape[0]} pixels, "
                f"but the image has {width} × {height}; correct the annotation"
            )
        return mask


@dataclass(frozen=True)
class PhotoSet:
    """Annotated photographs.

    Attributes:
        name: as the user gave it.
        layout: format of its folder.
        classes: names; label k is the class k − 1.
        categories: the set's own numbers of the classes.
        photos: its photographs.
    """

    name: str
    layout: Literal["voc", "coco"]
    classes: tuple[str, ...]
    categories: tuple[int, ...]
    photos: tuple[Photo, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the names, the classes and the boxes, hex."""
        # without the images' bytes: hashing them would take as long as reading the set
        state = hashlib.sha256(repr((self.classes, self.categories)).encode())
        for photo in self.photos:
            state.update(f"{photo.path.name} {photo.id} {len(photo.labels)}\n".encode())
            for array in (photo.boxes, photo.labels, photo.trained, photo.ignored):
                state.update(np.ascontiguousarray(array).tobytes())
        return state.hexdigest()

    @property
    def has_outlines(self) -> bool:
        """Whether every annotation has an outline, as pycocotools needs for masks."""
        return all(photo.outlines is not None and None not in photo.outlines for photo in self.photos)

    def as_coco(self, masks: bool = False) -> dict[str, Any]:
        """The annotations in COCO's format; ignored ones are crowds there.

        They are numbered from 1: pycocotools takes an annotation numbered 0 for one that was not found, and of several
        with one number it sees the last.

        Args:
            masks: for the metrics of masks: with outlines. An object whose outline has no area is ignored.
        """
        annotations: list[dict[str, Any]] = []
        for photo in self.photos:
            for place, (box, label) in enumerate(zip(photo.boxes.tolist(), photo.labels, strict=True)):
                left, top, right, bottom = box
                annotation = {
                    "id": len(annotations) + 1, "image_id": photo.id, "category_id": self.categories[label - 1],
                    "bbox": [left, top, right - left, bottom - top], "iscrowd": int(photo.ignored[place]),
                }  # fmt: skip
                outline = photo.outlines[place] if masks and photo.outlines is not None else None
                if isinstance(outline, tuple):
                    annotation["segmentation"] = [polygon.tolist() for polygon in outline]
                elif outline is not None:
                    annotation["segmentation"] = outline
                if outline == ():
                    empty = {"size": [photo.height, photo.width], "counts": [photo.height * photo.width]}
                    annotation |= {"segmentation": empty, "iscrowd": 1}
                annotation["area"] = photo.area(place)
                annotations.append(annotation)
        images = [{"id": p.id, "file_name": p.path.name, "height": p.height, "width": p.width} for p in self.photos]
        categories = [{"id": k, "name": name} for k, name in zip(self.categories, self.classes, strict=True)]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def run_lengths(outline: Any, height: int, width: int) -> dict[str, Any]:
    """The compressed run-length code of an outline, as `Photo.outlines` has it; raises pycocotools' errors."""
    tools = mask_tools()
    if isinstance(outline, tuple):
        # an object may be in several pieces, each a polygon
        return tools.merge(tools.frPyObjects([polygon.tolist() for polygon in outline], height, width))
    return tools.frPyObjects(outline, height, width) if isinstance(outline["counts"], list) else outline
