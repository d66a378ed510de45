"""Small annotated sets: procedural photographs with things of three kinds pasted on them.

The same scenes are written as a VOC-format and as a COCO-format folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from fastmoco.demo.made import draw_image

CLASSES = ("disc", "box", "wedge")
CATEGORIES = (7, 3, 12)  # COCO's numbers have gaps and no order
SIDE = (96, 80)  # width, height
_INKS = ((208, 48, 40), (40, 176, 72), (232, 200, 48))


@dataclass(frozen=True)
class Thing:
    """One annotated object."""

    label: int  # place in CLASSES
    box: tuple[int, int, int, int]  # the right and lower edges beyond the last pixel
    mask: np.ndarray
    difficult: bool = False
    crowd: bool = False


@cache
def compose(seed: int, special: bool = False) -> tuple[Image.Image, list[Thing]]:
    """A photograph with one to three things apart from each other; a special one's last is difficult, and a crowd."""
    rng = np.random.default_rng((17, seed))
    width, height = SIDE
    picture = draw_image(int(rng.integers(4)), height, width, rng)
    things: list[Thing] = []
    covered = np.zeros((height, width), bool)
    for _ in range(int(rng.integers(2, 4))):
        side = int(rng.integers(26, 44))
        left, top = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
        if covered[top : top + side, left : left + side].any():
            continue
        label = int(rng.integers(len(CLASSES)))
        shape = Image.new("1", (width, height))
        corners = (left, top, left + side - 1, top + side - 1)
        draw = ImageDraw.Draw(shape)
        if label == 0:
            draw.ellipse(corners, fill=1)
        elif label == 1:
            draw.rectangle(corners, fill=1)
        else:
            draw.polygon([(corners[0], corners[3]), (corners[2], corners[3]), (left + side // 2, top)], fill=1)
        ink = tuple(int(c) for c in np.clip(np.array(_INKS[label]) + rng.integers(-24, 25, 3), 0, 255))
        picture.paste(ink, mask=shape)
        mask = np.array(shape)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        things.append(Thing(label, box, mask))
        covered[top : top + side, left : left + side] = True
    if special and len(things) > 1:
        last = things.pop()
        things.append(Thing(last.label, last.box, last.mask, difficult=True, crowd=True))
    return picture, things


def scenes(first: int, count: int) -> list[tuple[Image.Image, list[Thing]]]:
    """Every fifth scene is special."""
    return [compose(seed, special=seed % 5 == 4) for seed in range(first, first + count)]


def write_voc(folder: Path, splits: dict[str, tuple[int, int]]) -> Path:
    """`splits`: first scene and number of scenes of each."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for split, (first, count) in splits.items():
        names = []
        for number, (picture, things) in enumerate(scenes(first, count), first):
            name = f"{number:06d}"
            names.append(name)
            picture.save(folder / "JPEGImages" / f"{name}.jpg", quality=92)
            (folder / "Annotations" / f"{name}.xml").write_text(_xml(name, picture, things))
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return folder


def _xml(name: str, picture: Image.Image, things: list[Thing]) -> str:
    objects = "".join(
        f"<object><name>{CLASSES[t.label]}</name><difficult>{int(t.difficult)}</difficult><bndbox>"
        f"<xmin>{t.box[0] + 1}</xmin><ymin>{t.box[1] + 1}</ymin><xmax>{t.box[2]}</xmax><ymax>{t.box[3]}</ymax>"
        "</bndbox></object>"
        for t in things
    )
    size = f"<size><width>{picture.width}</width><height>{picture.height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"


def write_coco(folder: Path, splits: dict[str, tuple[int, int]]) -> Path:
    """Boxes and wedges have polygons, discs compressed codes, crowds uncompressed ones."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for split, (first, count) in splits.items():
        (folder / split).mkdir(exist_ok=True)
        images, annotations = [], []
        for number, (picture, things) in enumerate(scenes(first, count), first):
            picture.save(folder / split / f"{number}.jpg", quality=92)
            images.append(
                {"id": 100 + number, "file_name": f"{number}.jpg", "height": picture.height, "width": picture.width}
            )
            for thing in things:
                left, top, right, bottom = thing.box
                annotations.append(
                    {
                        "id": len(annotations) + 1, "image_id": 100 + number,
                        "category_id": CATEGORIES[thing.label],
                        "bbox": [left, top, right - left, bottom - top], "area": int(thing.mask.sum()),
                        "iscrowd": int(thing.crowd), "segmentation": _outline(thing),
                    }
                )  # fmt: skip
        categories = [{"id": k, "name": name} for k, name in zip(CATEGORIES, CLASSES, strict=True)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def _outline(thing: Thing) -> Any:
    left, top, right, bottom = thing.box
    if thing.crowd:
        flat = thing.mask.flatten(order="F")
        edges = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff(np.array([0, *edges, len(flat)])).tolist()
        return {"size": list(thing.mask.shape), "counts": [0, *runs] if flat[0] else runs}
    if thing.label == 0:
        from pycocotools import mask as tools  # here: pytest collects other tests where it is not installed

        code: Any = tools.encode(np.asfortranarray(thing.mask.astype(np.uint8)))
        return {"size": code["size"], "counts": code["counts"].decode()}
    if thing.label == 1:
        return [[left, top, right, top, right, bottom, left, bottom]]
    return [[left, bottom, right, bottom, (left + right) / 2, top]]
