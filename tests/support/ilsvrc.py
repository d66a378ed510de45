"""ILSVRC2012's three files in their true shape, made small."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tests.support.tars import tar_bytes, write_tar

SYNSETS = (
    *("n02119789", "n02100735", "n02110185", "n02096294", "n02102040"),
    *("n02066245", "n02509815", "n02124075", "n02417914", "n02123394"),
)
"""The real first ten by ILSVRC2012_ID, 1 to 10; their order is not that of the names."""
TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def write_ilsvrc(
    out: Path,
    train: Mapping[str, Sequence[bytes]],
    val: Mapping[str, Sequence[bytes]],
    synsets: Sequence[str] = SYNSETS,
) -> list[str]:
    """Write the three files.

    Args:
        out: Folder.
        train: JPEG files by WNID.
        val: JPEG files by WNID; they are shuffled, as the real ones are.
        synsets: WNIDs by ILSVRC2012_ID, from 1.

    Returns:
        The WNID of each validation image, in their order.
    """
    out.mkdir(exist_ok=True, parents=True)
    inner = {
        f"{wnid}.tar": tar_bytes({f"{wnid}_{n}.JPEG": image for n, image in enumerate(images)})
        for wnid, images in train.items()
    }
    write_tar(out / TRAIN, inner)
    shuffled = [(wnid, image) for wnid, images in val.items() for image in images]
    random.Random(0).shuffle(shuffled)
    write_tar(out / VAL, {f"ILSVRC2012_val_{n:08d}.JPEG": image for n, (_, image) in enumerate(shuffled, 1)})
    wnids = [wnid for wnid, _ in shuffled]
    write_devkit(out / DEVKIT, [synsets.index(wnid) + 1 for wnid in wnids], synsets)
    return wnids


def write_devkit(path: Path, truth: Sequence[int], synsets: Sequence[str] = SYNSETS) -> Path:
    """Write the development kit: the ground truth, and meta.mat with two synsets that have children as well."""
    import gzip

    text = "".join(f"{number}\n" for number in truth).encode()
    top = "ILSVRC2012_devkit_t12"
    members = {f"{top}/readme.txt": b"...", f"{top}/data/{TRUTH}": text, f"{top}/data/meta.mat": meta_mat(synsets)}
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(gzip.compress(tar_bytes(members), mtime=0))
    return path


def meta_mat(synsets: Sequence[str]) -> bytes:
    """The kit's meta.mat: a column of structures in MATLAB's format of version 5."""
    from scipy.io import savemat

    names = (
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    )
    rows = [(number, wnid, "kit fox", "a fox", 0, [], 0, 1300) for number, wnid in enumerate(synsets, 1)]
    rows += [
        (1001, "n02083346", "canine", "a mammal", 2, [1, 3], 2, 0),
        (1002, "n02120997", "feline", "", 1, [8], 1, 0),
    ]
    table = np.empty((len(rows), 1), dtype=[(name, object) for name in names])
    table[:, 0] = rows
    file = io.BytesIO()
    savemat(file, {"synsets": table})
    return file.getvalue()
