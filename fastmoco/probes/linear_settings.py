"""The settings of a linear probe; their defaults are the paper's protocol (arXiv 1911.05722, section 4.1)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastmoco import flags
from fastmoco.config import ARCHITECTURES
from fastmoco.probes.settings import HardwareSettings, SourceSettings
from fastmoco.settings import CheckpointSettings


@dataclass(frozen=True)
class TrainingSettings:
    """Length of the training, its features, and SGD with its schedule."""

    # 30 and no weight decay: found by a grid search in the paper
    lr: tuple[float, ...] = (30.0,)
    """Learning rates; one classifier is trained for each."""
    epochs: int = 100
    """Length of the training in epochs."""
    batch_size: int = 256
    """Global batch size over all ranks."""
    # the authors' code: main_lincls.py
    milestones: tuple[float, ...] = (0.6, 0.8)
    """Points at which the learning rates are divided by ten: fractions of the run, or epochs if above 1. 0.6 and 0.8
    are 60 and 80 of 100."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 0.0
    """Weight decay of SGD."""
    fast: bool = False
    """Train on features of centre crops, computed once, instead of random crops in every epoch."""


@dataclass(frozen=True)
class OutputSettings:
    """Run folder, result and log."""

    out: Path | None = None
    """Run folder; the same command resumes the run in it. Default: that of the same probe in runs/, else a new one,
    runs/linear-ARCH-DATE."""
    json: Path | None = None
    """File to write the result to."""
    log_every: int = 50
    """Steps between log lines."""
    rank_timeout: float = 10.0
    """Minutes that a rank waits for another one, which may hang; then all end with the cause, and can be restarted."""
    notify: str | None = None
    """Command that is run when the run stops, fails or finishes, and for each warning: on rank 0, without a shell, with
    FASTMOCO_EVENT and others in its environment and the status as JSON on stdin (docs/training.md)."""


@dataclass(frozen=True)
class LinearCheckpoints(CheckpointSettings):
    """When checkpoints are written, where, and which are kept."""

    checkpoint_every: int = 0
    """Steps between checkpoints; 0: one after each epoch, and by time with --checkpoint-minutes."""
    checkpoint_minutes: float | None = 0
    """Minutes between checkpoints, also besides those by steps; 0: by steps alone."""
    keep_checkpoints: int = 2  # the newest, and one before it in case that is damaged


GROUPS: dict[str, type] = {
    "encoder and data": SourceSettings,
    "training": TrainingSettings,
    "hardware": HardwareSettings,
    "output": OutputSettings,
    "checkpoints": LinearCheckpoints,
}
"""Groups of flags in the order in which --help lists them."""


@dataclass(frozen=True)
class LinearSettings(LinearCheckpoints, OutputSettings, HardwareSettings, TrainingSettings, SourceSettings):
    """Train linear classifiers on frozen features of one shard set, and evaluate them on another."""

    seed: int = 0
    """Seed of the order, the crops, the classifiers' initial weights, and an untrained encoder."""

    def __post_init__(self) -> None:
        """Check what can be checked without the data; raises ConfigError."""
        flags.one_of(ARCHITECTURES, self, "arch")
        flags.at_least(1, self, "epochs", "batch_size", "log_every", "image_size", "resize", "threads")
        flags.at_least(0, self, "seed", "weight_decay")
        self.check_checkpoints()
        flags.check_sizes(self)
        flags.some(self, "lr")
        flags.positive(self, "lr", "rank_timeout")
        flags.require(len(set(self.lr)) == len(self.lr), f"--lr {self.lr} has a learning rate twice; give each once")
        flags.share(self, "momentum", below_one=True)
        self.milestone_fractions()
        flags.share(self, "decoder_load")

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
