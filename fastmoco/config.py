"""The settings of a training run, exactly as the user gave them.

Nothing is rescaled in place: what follows from the settings (the learning rate at a step, the
number of steps) is computed where it is used, from these values and the collection's size.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pipelines.options import PipelineOptions
from shards.errors import UserError
from shards.storage.places import is_url

ARCHITECTURES = (
    "resnet10",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext50_32x8d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "resnet50_w2",
    "resnet50_w4",
)
"""Encoders by name; `fastmoco.model.encoders` builds them. Kept here so that checking a flag needs no torch."""


class ConfigError(UserError, ValueError):
    """A setting that cannot work. The message names the value, the setting and a remedy."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class Config(PipelineOptions):
    """Settings of one run. Recipes fill them, flags override them, `config.json` records them."""

    recipe: str = "moco-v2"
    """Name of the recipe that gave the defaults."""
    shards: str | Path = Path("shards")
    """Shard set to train on, made by fastmoco-shard: a folder, or a URL as s3://bucket/prefix."""
    stream: str | None = None
    """In place of --shards: WebDataset tars that are no shard set, read forwards only; paths or URLs with braces, as
    s3://bucket/{00000..00099}.tar."""
    images_per_epoch: int | None = None
    """Images of an epoch of --stream; default: as many as img2dataset's NNNNN_stats.json beside the tars tell."""
    out: Path | None = None
    """Run folder; default runs/RECIPE."""
    mechanism: Literal["queue", "end-to-end", "memory-bank"] = "queue"
    """Where a query's negatives come from: the queue (MoCo), the same batch with gradients to both encoders, or a bank
    of all samples' features."""
    symmetric: bool = False
    """Let both views be query and key in turn; the loss is the mean of the two."""
    arch: str = "resnet50"
    """Encoder: any torchvision ResNet by its name, resnet10 (one block a stage), resnext50_32x8d, or resnet50_w2 and
    resnet50_w4 (all channels doubled, fourfold)."""
    init: Path | None = None
    """File with a torchvision ResNet's state_dict for the encoders to begin with; a continued run ignores it."""
    head: Literal["linear", "mlp"] = "linear"
    """Projection head: linear (v1) or a two-layer MLP (v2)."""
    zero_init_residual: bool = False
    """Start every residual branch at zero (the last BatchNorm's weight), so that blocks begin as the identity."""
    feature_dim: int = 128
    """Dimension D of the projected features and of the queue."""
    epochs: int | None = 200
    """Length of the run in epochs; see also --steps."""
    steps: int | None = None
    """Length of the run in steps; takes precedence over --epochs."""
    batch_size: int = 256
    """Global batch size over all ranks."""
    image_size: int = 224
    """Side of a view in pixels."""
    augmentation: Literal["v1", "v2"] = "v1"
    """Views as in MoCo v1, or v2 (adds blur)."""
    queue_size: int = 65_536
    """Number of keys K in the queue, or of those drawn from the memory bank for a step."""
    momentum_key: float = 0.999
    """Momentum m of the queue's key encoder."""
    momentum_key_schedule: Literal["constant", "cosine"] = "constant"
    """constant; cosine: from --momentum-key to 1 over the run, by half a cosine."""
    bank_momentum: float = 0.5
    """Momentum of a sample's entry in the memory bank."""
    temperature: float = 0.07
    """Temperature of the contrastive loss."""
    batch_norm: Literal["shuffle", "sync", "plain"] = "shuffle"
    """shuffle: statistics of a device's batch, with the keys' images dealt out anew; sync: of the batch over all
    devices; plain: of a device's batch, which lets a query tell its key by its company."""
    bn_splits: int = 1
    """BatchNorm groups a device's batch is cut into, with shuffled keys: the effect of many devices on one."""
    batch_norm_kernel: Literal["torch", "fused"] = "torch"
    """Implementation of BatchNorm: torch's own, or fused with ReLU and the residual addition, by Triton on NVIDIA GPUs
    (Ampere or later), which all groups of --bn-splits share; the same in plain torch elsewhere, for tests only."""
    lr: float | None = None
    """Peak learning rate, used as given; default: the recipe's, scaled by batch size / recipe batch size."""
    base_lr: float = 0.03
    """The recipe's learning rate at its batch size."""
    base_batch_size: int = 256
    """The batch size that base_lr belongs to."""
    schedule: Literal["cosine", "step", "exponential"] = "step"
    """cosine: to zero; step: × decay at each milestone; exponential: × decay every decay_steps."""
    milestones: tuple[float, ...] = (0.6, 0.8)
    """Drops of the step schedule, as fractions of the run (120 and 160 of 200 epochs)."""
    decay: float = 0.1
    """Factor of a drop in the step and exponential schedules."""
    decay_steps: int = 62_500
    """Steps between drops of the exponential schedule."""
    warmup: float = 0.0
    """Share of the run in which the learning rate rises linearly to its schedule; the papers have none."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay of SGD, on every parameter as in the paper."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Autocast type; auto takes bf16 where the hardware has it, else fp16 on CUDA and fp32 on CPU."""
    compile: bool = False
    """Compile the encoders with torch.compile."""
    seed: int = 0
    """Seed of the weights, the order of samples, the views and the shuffles."""
    resume: str = "auto"
    """auto: continue the newest checkpoint in --out if there is one; none: start anew; or a checkpoint's path."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: every ten minutes. One is always written at the end."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints are kept."""
    check_every: int = 1000
    """Steps between checks that all ranks hold the same weights and keys; 0: none."""
    log_every: int = 10
    """Steps between log lines."""
    knn_every: int = 0
    """Epochs between kNN probes; 0: none. Needs labels and --knn-val."""
    knn_train: str | Path | None = None
    """Shard set that the kNN probe takes neighbours from; default: --shards."""
    knn_val: str | Path | None = None
    """Shard set that the kNN probe classifies."""
    knn_k: int = 20
    """Neighbours of the kNN probe."""
    knn_temperature: float = 0.07
    """Temperature of the kNN probe's weights."""

    def __post_init__(self) -> None:
        """Check what can be checked without the data; raises ConfigError."""
        for name in ("shards", "knn_train", "knn_val", "init"):
            value = getattr(self, name)
            if value is not None and not is_url(value):
                object.__setattr__(self, name, Path(value))
        check(self)

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.out if self.out is not None else Path("runs") / self.recipe

    @property
    def negatives(self) -> int:
        """Keys that a query is told from besides its own."""
        return self.batch_size - 1 if self.mechanism == "end-to-end" else self.queue_size

    def per_rank_batch(self, world_size: int) -> int:
        """Images of one rank's batch; raises ConfigError where the batch cannot be dealt out evenly."""
        parts = world_size * self.bn_splits  # BatchNorm groups, but for SyncBN
        if self.batch_size % parts:
            below, above = self.batch_size // parts * parts, -(-self.batch_size // parts) * parts
            choice = f"use {below} or {above}" if below else f"use {above}"
            what = f"{world_size} ranks" if self.bn_splits == 1 else f"{world_size} ranks × {self.bn_splits} BN splits"
            raise ConfigError(f"--batch-size {self.batch_size} is not divisible by {what}; {choice}")
        groups = 1 if self.batch_norm == "sync" else parts
        require(
            self.batch_size // groups > 1,
            f"--batch-size {self.batch_size} leaves one image to a BatchNorm group; use at least {2 * groups}",
        )
        return self.batch_size // world_size

    def total_steps(self, steps_per_epoch: int) -> int:
        """Length of the run in steps."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None  # checked in __post_init__
        return self.epochs * steps_per_epoch

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as written to config.json and into checkpoints."""
        return {
            k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v
            for k, v in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """The inverse of `to_dict`; raises ConfigError for a key that is not a setting."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        require(
            not unknown,
            f"unknown settings {unknown} in the recorded configuration; was it written by a newer version?",
        )
        values = dict(values)
        if values.get("out") is not None:
            values["out"] = Path(values["out"])
        if "milestones" in values:
            values["milestones"] = tuple(values["milestones"])
        return cls(**values)


def check(config: Config) -> None:
    """Raise ConfigError for the first setting that cannot work."""
    known = ", ".join(ARCHITECTURES)
    require(config.arch in ARCHITECTURES, f"unknown --arch {config.arch!r}; known: {known}")
    _check_numbers(config)
    require(
        config.steps is not None or config.epochs is not None,
        "neither --epochs nor --steps is given; give one of them",
    )
    require(
        config.knn_every == 0 or config.knn_val is not None,
        f"--knn-every {config.knn_every} needs a labelled set to classify; add --knn-val SHARDS",
    )
    _check_mechanism(config)
    _check_stream(config)


def _check_numbers(config: Config) -> None:
    for name, allowed in config.out_of_range():
        raise ConfigError(f"{_flag(name)} is {getattr(config, name)}; it must be {allowed}")
    for name in ("feature_dim", "batch_size", "queue_size", "bn_splits", "log_every", "keep_checkpoints"):
        value = getattr(config, name)
        require(value >= 1, f"{_flag(name)} is {value}; it must be at least 1")
    require(config.image_size >= 16, f"--image-size is {config.image_size}; it must be at least 16 pixels")
    for name in ("temperature", "knn_temperature", "base_lr", "lr"):
        value = getattr(config, name)
        sound = value is None or (value > 0 and math.isfinite(value))
        require(sound, f"{_flag(name)} is {value}; it must be above 0")
    require(config.weight_decay >= 0, f"--weight-decay is {config.weight_decay}; it must not be negative")
    require(0 <= config.momentum_key <= 1, f"--momentum-key is {config.momentum_key}; it must be in 0..1")
    require(0 <= config.warmup < 1, f"--warmup is {config.warmup}; it is a share of the run, in 0..1, below 1")
    for name in ("momentum", "bank_momentum"):
        value = getattr(config, name)
        require(0 <= value < 1, f"{_flag(name)} is {value}; it must be in 0..1, below 1")
    for name in ("epochs", "steps", "images_per_epoch"):
        value = getattr(config, name)
        require(value is None or value >= 1, f"{_flag(name)} is {value}; it must be at least 1")
    for name in ("checkpoint_every", "check_every", "knn_every", "seed"):
        value = getattr(config, name)
        require(value >= 0, f"{_flag(name)} is {value}; it must not be negative")


def _check_mechanism(config: Config) -> None:
    require(
        config.batch_norm != "sync" or config.bn_splits == 1,
        f"--bn-splits {config.bn_splits} cuts up the batch that --batch-norm sync makes one; leave one of them out",
    )
    require(
        config.batch_norm_kernel == "torch" or not config.compile,
        "--batch-norm-kernel fused and --compile both fuse BatchNorm; leave one of them out",
    )
    if config.mechanism != "memory-bank":
        return
    require(
        not config.symmetric,
        "--symmetric makes keys of both views, but --mechanism memory-bank makes none; leave --symmetric out",
    )
    require(
        config.stream is None,
        "--mechanism memory-bank keeps an entry for each image of a set, but a stream's images have no numbers; "
        "make a set of the tars with fastmoco-shard index",
    )


def _check_stream(config: Config) -> None:
    if config.stream is None:
        require(config.images_per_epoch is None, "--images-per-epoch is an option of --stream; a shard set knows it")
        return
    require(
        config.shards == Path("shards"),
        f"--shards {config.shards} and --stream {config.stream} are both given; give one of them",
    )
    require(config.order == "auto", f"--order {config.order} is one of --shards; a stream has an order of its own")
    require(
        config.knn_every == 0 or config.knn_train is not None,
        "--knn-every needs labels, which --stream does not give; add --knn-train SHARDS",
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
