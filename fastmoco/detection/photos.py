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

    @property
    def outlined(self) -> np.ndarray:
        """bool[N], whether there is an outline to train on."""
        return np.array([bool(outline) for outline in self.outlines or [None] * len(self.labels)], bool)

    def masks(self, which: np.ndarray, height: int, width: int) -> np.ndarray:
        """uint8[M, height, width], 1 within the objects selected by `which` (bool[N], M of them true).

        Raises:
            BrokenImage: an outline is invalid.
        """
        assert self.outlines is not None
        found = [self._mask(self.outlines[place], height, width) for place in np.flatnonzero(which)]
        return np.stack(found) if found else np.zeros((0, height, width), np.uint8)

    def _mask(self, outline: Any, height: int, width: int) -> np.ndarray:
        tools = mask_tools()
        try:
            if isinstance(outline, tuple):
                # an object may be in several pieces, each a polygon
                code = tools.merge(tools.frPyObjects([polygon.tolist() for polygon in outline], height, width))
            elif isinstance(outline["counts"], list):
                code = tools.frPyObjects(outline, height, width)
            else:
                code = outline
            mask = tools.decode(code)
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
        truth: file with the annotations, for COCO-format sets.
    """

    name: str
    layout: Literal["voc", "coco"]
    classes: tuple[str, ...]
    categories: tuple[int, ...]
    photos: tuple[Photo, ...]
    truth: Path | None = None

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

    def as_coco(self) -> dict[str, Any]:
        """The annotations in COCO's format; ignored ones are crowds there."""
        annotations = []
        for photo in self.photos:
            for box, label, ignored in zip(photo.boxes.tolist(), photo.labels, photo.ignored, strict=True):
                left, top, right, bottom = box
                annotations.append(
                    {
                        "id": len(annotations) + 1, "image_id": photo.id, "category_id": self.categories[label - 1],
                        # pycocotools asks for areas, which VOC's annotations do not have
                        "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top),
                        "iscrowd": int(ignored),
                    }
                )  # fmt: skip
        images = [{"id": p.id, "file_name": p.path.name, "height": p.height, "width": p.width} for p in self.photos]
        categories = [{"id": k, "name": name} for k, name in zip(self.categories, self.classes, strict=True)]
        return {"images": images, "annotations": annotations, "categories": categories}
