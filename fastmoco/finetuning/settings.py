"""The settings of fine-tuning, and recipes with the papers'."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from fastmoco import flags
from fastmoco.probes.settings import (
    UNTRAINED,
    ClassifierSettings,
    EpochCheckpoints,
    HardwareSettings,
    RunOutput,
    SGDSettings,
    SourceSettings,
)
from fastmoco.settings import plain
from shards.words import counted

BASE_BATCH = 256
"""Batch size for which the recipes' learning rates are given."""


@dataclass(frozen=True)
class Recipe:
    """How the weights are trained.

    Attributes:
        name: of the recipe.
        epochs: length of the training.
        lr: learning rate of the encoder.
        head_lr: learning rate of the classifier.
        schedule: `step`, × `decay` at each milestone; or `cosine`, from the rate to 0 along half a cosine.
        milestones: fractions of the training.
        decay: factor at each milestone.
        nesterov: whether SGD's momentum is Nesterov's.
        weight_decay: of all weights.
    """

    name: str
    epochs: int
    lr: float
    head_lr: float
    schedule: str
    milestones: tuple[float, ...]
    decay: float
    nesterov: bool
    weight_decay: float

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """Factor of both learning rates at a step, counted from 0."""
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * step / (self.epochs * steps_per_epoch)))
        epoch = step // steps_per_epoch
        return self.decay ** sum(epoch >= round(milestone * self.epochs) for milestone in self.milestones)

    def values(self) -> dict[str, Any]:
        """All but the name, under the names of the settings, in plain values."""
        return {name: value for name, value in plain(self).items() if name != "name"}

    def in_words(self) -> str:
        """The recipe as text, for the log."""
        rates = f"learning rate {self.lr:g}, classifier {self.head_lr:g}"
        if self.schedule == "cosine":
            course = "along half a cosine to 0"
        elif self.milestones:
            *first, last = (str(round(milestone * self.epochs)) for milestone in self.milestones)
            at = f"{', '.join(first)} and {last}" if first else last
            course = f"× {self.decay:g} at epochs {at}"
        else:
            course = "constant"
        length = counted(self.epochs, "epoch")
        return f"recipe {self.name}: {length}, {rates}, {course}, weight decay {self.weight_decay:g}"


def swav_10() -> Recipe:
    """10 % of the labels (arXiv 2006.09882; the settings are those of its authors' eval_semisup.py and README)."""
    return Recipe(
        "swav-10", epochs=20, lr=0.01, head_lr=0.2, schedule="step", milestones=(0.6, 0.8), decay=0.2, nesterov=False,
        weight_decay=0.0,
    )  # fmt: skip


def swav_1() -> Recipe:
    """1 % of the labels, from the same source."""
    return replace(swav_10(), name="swav-1", lr=0.02, head_lr=5.0)


def simclr() -> Recipe:
    """All labels (arXiv 2002.05709, appendices B.2 and B.5): 0.05 × batch / 256, Nesterov, no weight decay.

    The cosine is that of its authors' code; the 30 epochs for all labels are SimCLRv2's (arXiv 2006.10029, section 3).
    """
    return Recipe(
        "simclr", epochs=30, lr=0.05, head_lr=0.05, schedule="cosine", milestones=(), decay=1.0, nesterov=True,
        weight_decay=0.0,
    )  # fmt: skip


def scratch() -> Recipe:
    """Random initial weights: supervised training of a ResNet on ImageNet (arXiv 1706.02677, section 5.1)."""
    return Recipe(
        "scratch", epochs=90, lr=0.1, head_lr=0.1, schedule="step", milestones=(30 / 90, 60 / 90, 80 / 90), decay=0.1,
        nesterov=True, weight_decay=1e-4,
    )  # fmt: skip


RECIPES: dict[str, Callable[[], Recipe]] = {
    "swav-1": swav_1,
    "swav-10": swav_10,
    "simclr": simclr,
    "scratch": scratch,
}
_UP_TO = {"swav-1": 0.03, "swav-10": 0.3}
"""Share of the labels up to which a recipe is the default: about the geometric mean with the next recipe's."""


@dataclass(frozen=True)
class LabelSettings:
    """The labels to train on."""

    fraction: float | None = None
    """Share of the labelled training images, above 0 and at most 1: as many of each class, drawn by --seed; default:
    all."""
    list: Path | None = None
    """File that names the training images to take, one a line, as SimCLR's 1percent.txt and 10percent.txt do; instead
    of --fraction."""
    write_list: Path | None = None
    """File to write the names of the images to that are trained on, as --list reads them."""


@dataclass(frozen=True)
class TrainingSettings(SGDSettings):
    """Length of the training, and SGD with its schedule."""

    recipe: Literal["auto", "swav-1", "swav-10", "simclr", "scratch"] = "auto"
    """Source of the defaults below. auto: swav-1 up to 3 % of the labels, swav-10 up to 30 %, else simclr; scratch with
    `untrained`."""
    epochs: int | None = None
    """Length of the training in epochs; default: the recipe's."""
    lr: float | None = None
    """Learning rate of the encoder; default: the recipe's × --batch-size / 256."""
    head_lr: float | None = None
    """Learning rate of the classifier; default: the recipe's × --batch-size / 256."""
    schedule: Literal["step", "cosine"] | None = None
    """Learning rates: step: × --decay at each milestone; cosine: along half a cosine to 0. Default: the recipe's."""
    milestones: tuple[float, ...] | None = None
    """Milestones of --schedule step: fractions of the run, or epochs if above 1; default: the recipe's."""
    decay: float | None = None
    """Decay factor of --schedule step; default: the recipe's."""
    nesterov: bool | None = None
    """Nesterov's momentum; default: the recipe's."""
    weight_decay: float | None = None
    """Weight decay of SGD; default: the recipe's."""


@dataclass(frozen=True)
class OutputSettings(RunOutput):
    """Run folder, result and log."""

    out: Path | None = None
    """Run folder; the same command resumes the run in it. Default: that of the same training in runs/, else a new one,
    runs/finetune-ARCH-DATE."""


GROUPS: dict[str, type] = {
    "encoder and data": SourceSettings,
    "labels": LabelSettings,
    "training": TrainingSettings,
    "hardware": HardwareSettings,
    "output": OutputSettings,
    "checkpoints": EpochCheckpoints,
}
"""Groups of flags in the order in which --help lists them."""


@dataclass(frozen=True)
class FinetuneSettings(TrainingSettings, LabelSettings, OutputSettings, ClassifierSettings):
    """Train an encoder with a classifier on one labelled shard set, or a part of it, and evaluate it on another."""

    seed: int = 0
    """Seed of the drawn labels, the order, the crops, the classifier's initial weights, and an untrained encoder."""

    def __post_init__(self) -> None:
        """Check what can be checked without the data; raises ConfigError."""
        super().__post_init__()
        flags.at_least(1, self, "epochs")
        flags.at_least(0, self, "weight_decay")
        flags.positive(self, "fraction", "lr", "head_lr", "decay")
        flags.share(self, "fraction", "decay")
        flags.require(
            self.fraction is None or self.list is None,
            f"--fraction {self.fraction} draws the labels and --list {self.list} names them; give one of them",
        )
        if self.epochs is not None and self.milestones is not None:
            flags.as_fractions(self.milestones, self.epochs)
        if self.recipe != "auto":  # else it is known once the labels are
            self.training(1.0)

    def training(self, share: float) -> Recipe:
        """The recipe for a share of the labels, with the values that were given in place of its own.

        Raises:
            ConfigError: the milestones are none of a training of this length.
        """
        name = self.recipe
        if name == "auto":
            fitting = (each for each, most in _UP_TO.items() if share <= most)
            name = "scratch" if self.checkpoint == UNTRAINED else next(fitting, "simclr")
        recipe = RECIPES[name]()
        scale = self.batch_size / BASE_BATCH
        recipe = replace(recipe, lr=recipe.lr * scale, head_lr=recipe.head_lr * scale)
        given = {field.name: getattr(self, field.name, None) for field in fields(Recipe)}
        recipe = replace(recipe, **{key: value for key, value in given.items() if value is not None})
        flags.require(
            recipe.schedule == "step" or not self.milestones,
            f"--milestones is for --schedule step, and the schedule is {recipe.schedule}; leave it out",
        )
        flags.require(
            not recipe.nesterov or self.momentum > 0, "--nesterov needs --momentum above 0; add --no-nesterov"
        )
        return replace(recipe, milestones=flags.as_fractions(recipe.milestones, recipe.epochs))

    def deciding(self, recipe: Recipe) -> dict[str, Any]:
        """The settings that determine the weights, in plain values; a run is resumed only under the same ones."""
        return recipe.values() | {name: getattr(self, name) for name in ("batch_size", "momentum", "seed", "precision")}
