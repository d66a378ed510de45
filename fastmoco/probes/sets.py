"""The two labelled sets of a probe: one to train on, one to evaluate on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastmoco.ranks.images import Opened, agree_on_images
from fastmoco.ranks.world import World
from fastmoco.runs.progress import waiting
from shards import ShardSet
from shards.errors import UserError
from shards.words import counted, one_form


class ProbeError(UserError, ValueError):
    """A probe that cannot run. The message names the reason and a remedy."""


class LabelledSets:
    """The sets of a probe; the validation set's classes are found in the training set by their names.

    The validation set may lack classes, as ImageNet-A and -R do. Then its images are classified among its own classes:
    those that its manifest lists, or, as numbers have no list, those that occur.

    Args:
        train: path or URL of the training set.
        val: path or URL of the validation set.
        select: given the training set and the ids of its samples that have a label, returns those to train on; None
            for all.
        here: this rank of several, which all open the sets; None for one process.

    Attributes:
        train: the training set.
        val: the validation set.
        labelled: number of the training samples that have a label.
        train_ids: int64[N], ids of those that are selected of them.
        val_ids: int64[M], the same for the validation set.
        val_labels: int64[M], labels of the validation samples as the training set numbers them.
        classes: number of classes of the training set.
        among: int64[P], labels of the validation set's classes, sorted; None if it has all that are trained on.

    Raises:
        ProbeError: a set has no labels, or validation images have a class that the training set does not know.
        ImagesDiffer: ranks opened different images.
    """

    def __init__(
        self,
        train: str | Path,
        val: str | Path,
        select: Callable[[ShardSet, np.ndarray], np.ndarray] | None = None,
        here: World | None = None,
    ) -> None:
        with waiting(f"opening {train} and {val}"):
            self.train, self.val = ShardSet(train), ShardSet(val)
        if here is not None:
            agree_on_images(here, Opened.of(self.train), Opened.of(self.val))
        self.train_ids, self.val_ids = _labelled("train", self.train), _labelled("val", self.val)
        self.labelled = len(self.train_ids)
        if select is not None:
            self.train_ids = select(self.train, self.train_ids)
        self.classes = len(self.train.classes)
        label_of, numbered = _by_name(self.train.classes, self.val.classes)
        found = self.val.labels(self.val_ids)
        self.val_labels = label_of[found].astype(np.int64)
        unknown = np.unique(found[self.val_labels < 0]).tolist()
        if unknown:
            names = [self.val.classes[label] for label in unknown]
            what = counted(len(names), "class")
            raise ProbeError(
                f"the training set {train} does not have {what} of the validation set {val}: {_some(names)};"
                " pack a validation set without their images (for folders: --exclude NAME)"
            )
        present = np.unique(self.val_labels)
        self._trained = np.unique(self.train.labels(self.train_ids)).astype(np.int64)
        own = present if numbered else np.unique(label_of[label_of >= 0]).astype(np.int64)
        self.among = None if np.isin(self._trained, own).all() else own
        self._untrained = np.setdiff1d(present, self._trained)

    @property
    def val_classes(self) -> int:
        """Number of the classes among which validation images are classified."""
        return self.classes if self.among is None else len(self.among)

    def summary(self) -> dict[str, Any]:
        """The sets' sizes and classes, for results; `evaluated` has the classes' names if they are a part."""
        evaluated = None if self.among is None else self.names(self.among)
        return {
            "train": len(self.train_ids), "val": len(self.val_ids), "classes": self.classes,
            "val_classes": self.val_classes, "evaluated": evaluated,
        }  # fmt: skip

    def names(self, labels: np.ndarray) -> list[str]:
        """Names of classes (int64[P])."""
        return [self.train.classes[label] for label in labels.tolist()]

    def notes(self) -> list[str]:
        """Lines for the log about sets that are the same, and classes that only one of them has."""
        notes = []
        if self.train.digest == self.val.digest:
            notes.append(
                "the validation images are the training images: the result says nothing about other images; give --val "
                "a set of others"
            )
        if self.among is not None:
            missing = np.setdiff1d(self._trained, self.among)
            few = len(missing) < len(self.among)
            which = f"without {_some(self.names(missing))}" if few else _some(self.names(self.among))
            notes.append(
                f"the validation set has {self.val_classes:,} of {self.classes:,} classes ({which}):"
                " its images are classified among these"
            )
        if len(self._untrained):
            names = _some(self.names(self._untrained))
            notes.append(f"no training image has a class of these validation images, which count as wrong: {names}")
        return notes


def _by_name(train: Sequence[str], val: Sequence[str]) -> tuple[np.ndarray, bool]:
    """int64[V]: the training set's label of each validation class, -1 for none; and whether the classes are numbers."""
    numbered = all(name.isascii() and name.isdigit() for name in (*train, *val))
    keys, wanted = ([_key(name, numbered) for name in names] for names in (train, val))
    if len(set(keys)) < len(keys) or len(set(wanted)) < len(wanted):  # `1` beside `01`: two classes of one set
        keys, wanted = list(train), list(val)
    label_of = {key: label for label, key in enumerate(keys)}
    return np.array([label_of.get(key, -1) for key in wanted]), numbered


def _key(name: str, numbered: bool) -> str:
    # `003` is 3
    return name.lstrip("0") if numbered else one_form(name)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def _labelled(flag: str, shard_set: ShardSet) -> np.ndarray:
    ids = np.arange(len(shard_set))
    if shard_set.classes:
        ids = ids[shard_set.labels(ids) >= 0]
    if not shard_set.classes or not len(ids):
        raise ProbeError(
            f"the {flag} set {shard_set.path} has no labels; pack a folder with one subfolder for each class"
        )
    return ids
