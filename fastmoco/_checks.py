"""What can be said against a run's settings before its data are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from fastmoco.model.encoders import ARCHITECTURES

if TYPE_CHECKING:
    from fastmoco.config import Config


class ConfigError(ValueError):
    """A setting that cannot work. The message names the value, the setting and a remedy."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


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
    counts = ("feature_dim", "batch_size", "queue_size", "bn_splits", "log_every", "keep_checkpoints")
    for name in (*counts, "order_window", "order_lanes", "shuffle_buffer", "prefetch"):
        value = getattr(config, name)
        require(value >= 1, f"{_flag(name)} is {value}; it must be at least 1")
    require(config.image_size >= 16, f"--image-size is {config.image_size}; it must be at least 16 pixels")
    for name in ("temperature", "knn_temperature", "base_lr", "lr"):
        value = getattr(config, name)
        sound = value is None or (value > 0 and math.isfinite(value))
        require(sound, f"{_flag(name)} is {value}; it must be above 0")
    require(config.weight_decay >= 0, f"--weight-decay is {config.weight_decay}; it must not be negative")
    for name in ("decoder_load", "momentum_key"):
        value = getattr(config, name)
        require(0 <= value <= 1, f"{_flag(name)} is {value}; it must be in 0..1")
    require(0 <= config.warmup < 1, f"--warmup is {config.warmup}; it is a share of the run, in 0..1, below 1")
    for name in ("momentum", "bank_momentum"):
        value = getattr(config, name)
        require(0 <= value < 1, f"{_flag(name)} is {value}; it must be in 0..1, below 1")
    for name in ("epochs", "steps", "threads", "images_per_epoch"):
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
