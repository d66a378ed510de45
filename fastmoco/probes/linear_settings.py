"""The settings of a linear probe; their defaults are the paper's protocol (arXiv 1911.05722, section 4.1)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fastmoco import flags
from fastmoco.probes.settings import (
    CachedSettings,
    ClassifierSettings,
    EpochCheckpoints,
    HardwareSettings,
    RunOutput,
    SGDSettings,
)


@dataclass(frozen=True)
class TrainingSettings(SGDSettings):
    """Length of the training, its features, and SGD with its schedule."""

    # 30 and no weight decay: found by a grid search in the paper
    lr: tuple[float, ...] = (30.0,)
    """Learning rates; one classifier is trained for each."""
    epochs: int = 100
    """Length of the training in epochs."""
    # the authors' code: main_lincls.py
    milestones: tuple[float, ...] = (0.6, 0.8)
    """Points at which the learning rates are divided by ten: fractions of the run, or epochs if above 1. 0.6 and 0.8
    are 60 and 80 of 100."""
    weight_decay: float = 0.0
    """Weight decay of SGD."""
    fast: bool = False
    """Train on features of centre crops, computed once, instead of random crops in every epoch."""


GROUPS: dict[str, type] = {
    "encoder and data": CachedSettings,
    "training": TrainingSettings,
    "hardware": HardwareSettings,
    "output": RunOutput,
    "checkpoints": EpochCheckpoints,
}
"""Groups of flags in the order in which --help lists them."""


@dataclass(frozen=True)
class LinearSettings(TrainingSettings, CachedSettings, ClassifierSettings):
    """Train linear classifiers on frozen features of one shard set, and evaluate them on another."""

    def __post_init__(self) -> None:
        """Check what can be checked without the data; raises ConfigError."""
        super().__post_init__()
        flags.at_least(1, self, "epochs")
        flags.at_least(0, self, "weight_decay")
        flags.some(self, "lr")
        flags.positive(self, "lr")
        flags.require(len(set(self.lr)) == len(self.lr), f"--lr {self.lr} has a learning rate twice; give each once")
        self.milestone_fractions()

    def factor(self, epoch: int) -> float:
        """Factor of the learning rates in an epoch."""
        return 0.1 ** sum(epoch >= round(milestone * self.epochs) for milestone in self.milestone_fractions())

    def milestone_fractions(self) -> tuple[float, ...]:
        """The milestones as fractions of the run; raises ConfigError for those that are none."""
        return flags.as_fractions(self.milestones, self.epochs)

    def deciding(self) -> dict[str, Any]:
        """The settings that determine the result, in plain values; a run is resumed only under the same ones."""
        names = (
            *("lr", "epochs", "batch_size", "milestones", "momentum", "weight_decay", "fast", "seed", "precision"),
        )
        values = asdict(self) | {"milestones": self.milestone_fractions()}  # however they were given
        return {name: list(values[name]) if isinstance(values[name], tuple) else values[name] for name in names}
