"""The settings of a linear probe; their defaults are the paper's protocol (arXiv 1911.05722, section 4.1)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fastmoco import flags


@dataclass(frozen=True)
class LinearSettings:
    """Train linear classifiers on a frozen encoder's features of one shard set, and classify another."""

    checkpoint: str
    """Checkpoint of a training run; a torchvision state dictionary (with --arch); or `untrained` (with --arch)."""
    train: str | Path
    """Labelled shard set to train on."""
    val: str | Path
    """Labelled shard set to classify."""
    out: Path = Path("runs/linear")
    """Run folder; the same command goes on with what is in it."""
    json: Path | None = None
    """File to write the result to."""
    lr: tuple[float, ...] = (30.0,)
    """Learning rates; each trains a classifier of its own on the same features."""
    epochs: int = 100
    """Epochs of the training set."""
    batch_size: int = 256
    """Global batch size over all ranks."""
    milestones: tuple[float, ...] = (0.6, 0.8)
    """Where the learning rates fall to a tenth, as fractions of the epochs (60 and 80 of 100)."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 0.0
    """Weight decay of SGD."""
    fast: bool = False
    """Make the features once, of the centre crops, instead of in every epoch, of random ones."""
    cache: Path | None = None
    """Folder in which features of centre crops are kept for later calls; default: they are not kept."""
    arch: str | None = None
    """Architecture, where the checkpoint does not say it."""
    image_size: int | None = None
    """Side of the crops; default: the training's view size, or 224."""
    resize: int | None = None
    """Short side before the centre crop; default: 8/7 of the crop, to the nearest multiple of 8."""
    seed: int = 0
    """Seed of the order, the crops, the classifiers' first weights, and an untrained encoder."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """That the encoder computes in; the classifiers compute in fp32."""
    threads: int | None = None
    """Decoding threads of a rank; default: one a core."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: one after each epoch."""
    log_every: int = 50
    """Steps between log lines."""

    def __post_init__(self) -> None:
        """Check what can be checked without the data; raises ConfigError."""
        flags.at_least(1, self, "epochs", "batch_size", "log_every", "image_size", "resize", "threads")
        flags.at_least(0, self, "seed", "checkpoint_every", "weight_decay")
        flags.some(self, "lr")
        flags.positive(self, "lr")
        flags.require(len(set(self.lr)) == len(self.lr), f"--lr {self.lr} has a learning rate twice; give each once")
        flags.share(self, "momentum", below_one=True)

    def factor(self, epoch: int) -> float:
        """What the learning rates are multiplied with in an epoch."""
        return 0.1 ** sum(epoch >= round(milestone * self.epochs) for milestone in self.milestones)

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the result, in plain values; a run continues under the same ones alone."""
        names = (
            *("lr", "epochs", "batch_size", "milestones", "momentum", "weight_decay", "fast", "seed", "precision"),
        )
        values = asdict(self)
        return {name: list(values[name]) if isinstance(values[name], tuple) else values[name] for name in names}
