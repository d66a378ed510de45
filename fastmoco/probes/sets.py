"""The two labelled sets of a probe: one to train on, one to evaluate on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shards import ShardSet
from shards.errors import UserError


class ProbeError(UserError, ValueError):
    """A probe that cannot run. The message names the reason and a remedy."""


def resize_for(image_size: int) -> int:
    """Short side before a centre crop of `image_size`: 8/7 of it (256 for 224), to the nearest multiple of 8."""
    return round(image_size * 8 / 7 / 8) * 8


class LabelledSets:
    """The sets of a probe, opened and checked against each other.

    Args:
        train: path or URL of the training set.
        val: path or URL of the validation set.

    Attributes:
        train: the training set.
        val: the validation set.
        train_ids: int64[N], ids of the training samples that have a label; the others are ignored.
        val_ids: int64[M], the same for the validation set.
        classes: number of classes.

    Raises:
        ProbeError: a set has no labels, or the two differ in their classes.
    """

    def __init__(self, train: str | Path, val: str | Path) -> None:
        self.train, self.val = ShardSet(train), ShardSet(val)
        self.train_ids, self.val_ids = _labelled("train", self.train), _labelled("val", self.val)
        # labels are indices into these lists, so their order counts, too
        if self.train.classes != self.val.classes:
            odd = sorted(set(self.train.classes) ^ set(self.val.classes))
            how = f"by {', '.join(odd[:5])}" if odd else "in their order"
            counts = f"{len(self.train.classes)} and {len(self.val.classes)}"
            raise ProbeError(f"{train} and {val} differ in their classes ({counts}), {how}; pack folders with the same")
        self.classes = len(self.train.classes)


def _labelled(flag: str, shard_set: ShardSet) -> np.ndarray:
    ids = np.arange(len(shard_set))
    if shard_set.classes:
        ids = ids[shard_set.labels(ids) >= 0]
    if not shard_set.classes or not len(ids):
        raise ProbeError(
            f"the {flag} set {shard_set.path} has no labels; pack a folder with one subfolder for each class"
        )
    return ids
