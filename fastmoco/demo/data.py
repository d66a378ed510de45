"""The demo's images: generated or the user's own, split into training and validation sets, and packed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from fastmoco.demo.made import make_images
from shards import PackOptions, pack
from shards.errors import PackError, UserError
from shards.format.manifest import MANIFEST
from shards.packing.options import check_apart
from shards.packing.sources import FolderSource, Record
from shards.packing.splits import training_split

CLASSES, PER_CLASS, SIDE = 20, 140, 96
VAL_SHARE = 7  # one image in seven is for validation
TRAIN_PER_CLASS = PER_CLASS - PER_CLASS // VAL_SHARE
LEAST_IMAGES = 32


class DemoError(UserError, ValueError):
    """The demo cannot run as requested; the message names the reason and a remedy."""


@dataclass(frozen=True)
class DemoData:
    """The demo's packed images.

    Attributes:
        train: shard set to train on.
        val: labelled shard set for evaluation; None if the images have no labels.
        notes: sentences on the images for the report.
    """

    train: Path
    val: Path | None
    notes: tuple[str, ...]


def training_part(src: Path | None, out: Path) -> Path | None:
    """The folder whose images are used: `src`, or its training split where its top folders are splits.

    Raises:
        DemoError: `src` holds splits, but none for training.
        shards.PackError: `src` and `out` are one folder, or one is inside the other.
    """
    if src is None:
        return None
    check_apart(src, out)
    try:
        return Path(training_split(PackOptions(src, out))[0].src)
    except PackError as error:
        raise DemoError(
            f"the folders of --src {src} are splits, not one of them for training; name one as --src"
        ) from error


def prepare(folder: Path, src: Path | None, *, limit: int, resize: int, seed: int) -> DemoData:
    """Write images to folder/images and shard sets to folder/train and folder/val; resumes after an interruption.

    Args:
        folder: the demo's data folder.
        src: folder of the user's images; None: images are generated.
        limit: maximum number of images.
        resize: short side in pixels that larger images of the user's are resized to.
        seed: of the generated images, and of the packed order.

    Raises:
        DemoError: there are too few images.
        shards.PackError: `src` cannot be read or packed.
    """
    images = folder / "images"
    notes = _make(images, limit, seed) if src is None else _link(images, src, limit)
    parts = [name for name in ("train", "val") if (images / name).is_dir()]
    for name in parts:
        pack(PackOptions(images / name, folder / name, resize=None if src is None else resize, seed=seed))
    return DemoData(folder / "train", folder / "val" if "val" in parts else None, notes)


def _make(images: Path, limit: int, seed: int) -> tuple[str, ...]:
    total = min(PER_CLASS, limit // CLASSES)
    val = max(1, total // VAL_SHARE)
    train = total - val
    if train * CLASSES < LEAST_IMAGES:
        least = (-(-LEAST_IMAGES // CLASSES) + 1) * CLASSES
        raise DemoError(f"--limit {limit} leaves too few images for {CLASSES} classes; use at least {least}")
    for name, per_class, first in (("train", train, 0), ("val", val, train)):
        if not (images / name).is_dir():  # renamed once complete, so an existing folder is whole
            partial = images / f"{name}.partial"
            make_images(partial, classes=CLASSES, per_class=per_class, size=SIDE, seed=seed, first=first)
            partial.rename(images / name)
    return (
        "Each class of the generated images is a pattern; colour, light, zoom and rotation do not depend on the class.",
    )


def _link(images: Path, src: Path, limit: int) -> tuple[str, ...]:
    """Link the user's images into images/train and images/val; nothing is copied or changed."""
    if (src / MANIFEST).exists():
        raise DemoError(
            f"--src {src} is a shard set; give the folder of the images, or use fastmoco train --shards {src}"
        )
    files = [found for found in FolderSource(str(src)).records() if isinstance(found, Record)]
    tops = sorted({file.label for file in files if file.label is not None})
    classes = [os.fsdecode(name) for name in tops] if len(tops) > 1 else []
    # by a hash: --limit then takes images of all folders, the same ones at every call
    paths = sorted((file.path for file in files), key=lambda path: hashlib.sha256(path).digest())
    names = [os.fsdecode(path) for path in paths[:limit]]
    notes = [f"{len(names):,} of {len(paths):,} images of {src} are used, selected by a hash of their names."]
    train, val = _split(names) if classes else (names, [])
    if classes and not val:
        notes.append("Fewer than two folders contain two images or more, so the folders are not treated as classes.")
    elif classes and (lost := len(classes) - len({_top(name) for name in val})):
        notes.append(f"{lost} folders with fewer than two of these images are excluded.")
    if len(train) < LEAST_IMAGES:
        raise DemoError(f"--src {src} gives {len(train)} images to train on; the demo needs at least {LEAST_IMAGES}")
    # of an interrupted or earlier demo: stale links would be packed as well
    shutil.rmtree(images, ignore_errors=True)
    for part, members in (("train", train), ("val", val)):
        for name in members:
            link = images / part / name
            link.parent.mkdir(parents=True, exist_ok=True)
            # absolute, since a relative target would be looked up from the link's folder
            link.symlink_to(Path(os.path.abspath(src), name))
    return tuple(notes)


def _top(name: str) -> str:
    return name.split("/", 1)[0]


def _split(names: list[str]) -> tuple[list[str], list[str]]:
    """Split each class into training and validation, at least one image each; smaller classes are excluded.

    If fewer than two classes remain, all names are returned for training.
    """
    by_class: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if "/" in name:
            by_class[_top(name)].append(name)
    usable = [members for members in by_class.values() if len(members) > 1]
    if len(usable) < 2:
        return names, []
    cuts = [max(1, len(members) // VAL_SHARE) for members in usable]
    train = [name for members, cut in zip(usable, cuts, strict=True) for name in members[cut:]]
    val = [name for members, cut in zip(usable, cuts, strict=True) for name in members[:cut]]
    return train, val
