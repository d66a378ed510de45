"""The settings of a training run, exactly as the user gave them.

Nothing is rescaled in place: what follows from the settings (the learning rate at a step, the
number of steps) is computed where it is used, from these values and the collection's size.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from fastmoco.model.encoders import ARCHITECTURES
from pipelines.order import Policy
from pipelines.sharded import LANES, WINDOW
from pipelines.streamed import BUFFER
from shards.options import is_url


class ConfigError(ValueError):
    """A setting that cannot work. The message names the value, the setting and a remedy."""


@dataclass(frozen=True)
class Config:
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
    shuffle_buffer: int = BUFFER
    """Images of --stream that a rank holds in memory and draws the next one from."""
    out: Path | None = None
    """Run folder; default runs/RECIPE."""
    arch: str = "resnet50"
    """Encoder: any torchvision ResNet by its name, or resnet10 (one block a stage)."""
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
    """Number of keys K in the queue."""
    momentum_key: float = 0.999
    """Momentum m of the key encoder."""
    temperature: float = 0.07
    """Temperature of the contrastive loss."""
    bn_splits: int = 1
    """BatchNorm groups a device's batch is cut into, with shuffled keys: the effect of many devices on one."""
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
    pipeline: Literal["auto", "dali", "torch", "constant"] = "auto"
    """Data backend; auto says in the log which one it took and why."""
    order: Policy = "auto"
    """global shuffles all samples together every epoch; sharded reads shard after shard, for sets larger than a node's
    disk; auto takes global up to 16 million samples."""
    order_window: int = WINDOW
    """Samples that a lane of the order sharded mixes."""
    order_lanes: int = LANES
    """Lanes of the order sharded: ranks, or nodes, that can share an epoch without reading the same shards."""
    threads: int | None = None
    """Decoding threads of a rank; default by the backend."""
    prefetch: int = 2
    """Batches kept ready ahead of the step."""
    decoder_load: float = 0.65
    """Share of a batch that DALI gives to a GPU's JPEG engine, where it has one."""
    seed: int = 0
    """Seed of the weights, the order of samples, the views and the shuffles."""
    resume: str = "auto"
    """auto: continue the newest checkpoint in --out if there is one; none: start anew; or a checkpoint's path."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: every ten minutes. One is always written at the end."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints are kept."""
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
        for name in ("shards", "knn_train", "knn_val"):
            value = getattr(self, name)
            if value is not None and not is_url(value):
                object.__setattr__(self, name, Path(value))
        _require(
            self.arch in ARCHITECTURES,
            f"unknown --arch {self.arch!r}; known: {', '.join(ARCHITECTURES)}",
        )
        counts = ("feature_dim", "batch_size", "queue_size", "bn_splits", "log_every", "keep_checkpoints")
        for name in (*counts, "order_window", "order_lanes", "shuffle_buffer", "prefetch"):
            value = getattr(self, name)
            _require(value >= 1, f"{_flag(name)} is {value}; it must be at least 1")
        _require(self.image_size >= 16, f"--image-size is {self.image_size}; it must be at least 16 pixels")
        for name in ("temperature", "knn_temperature", "base_lr"):
            value = getattr(self, name)
            _require(value > 0 and math.isfinite(value), f"{_flag(name)} is {value}; it must be above 0")
        _require(
            self.lr is None or (self.lr > 0 and math.isfinite(self.lr)),
            f"--lr is {self.lr}; it must be above 0",
        )
        _require(self.weight_decay >= 0, f"--weight-decay is {self.weight_decay}; it must not be negative")
        _require(0 <= self.decoder_load <= 1, f"--decoder-load is {self.decoder_load}; it must be in 0..1")
        _require(0 <= self.momentum_key <= 1, f"--momentum-key is {self.momentum_key}; it must be in 0..1")
        _require(0 <= self.warmup < 1, f"--warmup is {self.warmup}; it is a share of the run, in 0..1, below 1")
        _require(0 <= self.momentum < 1, f"--momentum is {self.momentum}; it must be in 0..1, below 1")
        for name in ("epochs", "steps", "threads", "images_per_epoch"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{_flag(name)} is {value}; it must be at least 1")
        for name in ("checkpoint_every", "knn_every", "seed"):
            value = getattr(self, name)
            _require(value >= 0, f"{_flag(name)} is {value}; it must not be negative")
        _require(
            self.steps is not None or self.epochs is not None,
            "neither --epochs nor --steps is given; give one of them",
        )
        _require(
            self.knn_every == 0 or self.knn_val is not None,
            f"--knn-every {self.knn_every} needs a labelled set to classify; add --knn-val SHARDS",
        )
        self._check_stream()

    def _check_stream(self) -> None:
        if self.stream is None:
            _require(self.images_per_epoch is None, "--images-per-epoch is an option of --stream; a shard set knows it")
            return
        _require(
            self.shards == Path("shards"),
            f"--shards {self.shards} and --stream {self.stream} are both given; give one of them",
        )
        _require(self.order == "auto", f"--order {self.order} is one of --shards; a stream has an order of its own")
        _require(
            self.knn_every == 0 or self.knn_train is not None,
            "--knn-every needs labels, which --stream does not give; add --knn-train SHARDS",
        )

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.out if self.out is not None else Path("runs") / self.recipe

    def per_rank_batch(self, world_size: int) -> int:
        """Images of one rank's batch; raises ConfigError where the batch cannot be dealt out evenly."""
        parts = world_size * self.bn_splits
        if self.batch_size % parts:
            below, above = self.batch_size // parts * parts, -(-self.batch_size // parts) * parts
            choice = f"use {below} or {above}" if below else f"use {above}"
            what = f"{world_size} ranks" if self.bn_splits == 1 else f"{world_size} ranks × {self.bn_splits} BN splits"
            raise ConfigError(f"--batch-size {self.batch_size} is not divisible by {what}; {choice}")
        _require(
            self.batch_size // parts > 1,
            f"--batch-size {self.batch_size} leaves one image to a BatchNorm group; use at least {2 * parts}",
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
        _require(
            not unknown,
            f"unknown settings {unknown} in the recorded configuration; was it written by a newer version?",
        )
        values = dict(values)
        if values.get("out") is not None:
            values["out"] = Path(values["out"])
        if "milestones" in values:
            values["milestones"] = tuple(values["milestones"])
        return cls(**values)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
