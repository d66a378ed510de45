"""The settings of a linear probe; their defaults are the paper's protocol (arXiv 1911.05722, section 4.1)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fastmoco import flags


@dataclass(frozen=True)
class LinearSettings:
    """Train linear classifiers on frozen features of one shard set, and evaluate them on another."""

    checkpoint: str
    """Checkpoint of fastmoco.train or the original MoCo, torchvision or timm state dictionary, or `untrained`."""
    train: str | Path
    """Labelled shard set to train on."""
    val: str | Path
    """Labelled shard set to evaluate on."""
    out: Path = Path("runs/linear")
    """Run folder; the same command resumes the run in it."""
    json: Path | None = None
    """File to write the result to."""
    lr: tuple[float, ...] = (30.0,)
    """Learning rates; one classifier is trained for each."""
    epochs: int = 100
    """Length of the training in epochs."""
    batch_size: int = 256
    """Global batch size over all ranks."""
    milestones: tuple[float, ...] = (0.6, 0.8)
    """Points at which the learning rates are divided by ten, as fractions of the epochs: 60 and 80 of 100."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 0.0
    """Weight decay of SGD."""
    fast: bool = False
    """Train on features of centre crops, computed once, instead of random crops in every epoch."""
    cache: Path | None = None
    """Folder in which to cache features of centre crops for later calls; default: no cache."""
    arch: str | None = None
    """Architecture, if the file does not record it."""
    image_size: int | None = None
    """Side of the crops in pixels; default: that of the views in training, or 224."""
    resize: int | None = None
    """Short side before the centre crop; default: 8/7 of the crop, rounded to a multiple of 8."""
    seed: int = 0
    """Seed of the order, the crops, the classifiers' initial weights, and an untrained encoder."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Precision of the encoder's forward pass; the classifiers compute in fp32."""
    threads: int | None = None
    """Decoding threads per rank; default: one per core."""
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
        """Factor of the learning rates in an epoch."""
        return 0.1 ** sum(epoch >= round(milestone * self.epochs) for milestone in self.milestones)

    def deciding(self) -> dict[str, Any]:
        """The settings that determine the result, in plain values; a run is resumed only under the same ones."""
        names = (
            *("lr", "epochs", "batch_size", "milestones", "momentum", "weight_decay", "fast", "seed", "precision"),
        )
        values = asdict(self)
        return {name: list(values[name]) if isinstance(values[name], tuple) else values[name] for name in names}
