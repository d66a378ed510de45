"""The settings of a training run, exactly as the user gave them.

Nothing is rescaled in place: what follows from the settings (the learning rate at a step, the number of steps) is
computed where it is used, from these values and the size of the data set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fastmoco import architectures, flags, views
from fastmoco.channels import CHANNELS, usual_normalisation
from fastmoco.flags import ConfigError, require
from fastmoco.settings import (
    RECORDED,
    CheckpointSettings,
    DataSettings,
    EvaluationSettings,
    HardwareSettings,
    ModelSettings,
    ObjectiveSettings,
    OptimisationSettings,
    RecordSettings,
    plain,
)
from pipelines.options import PipelineOptions
from shards.storage.places import is_url, local
from shards.words import counted

__all__ = ["GROUPS", "Config", "ConfigError"]

IN_BATCH = ("batch", "end-to-end")
"""Mechanisms whose negatives are the batch's other images."""
GROUPS: dict[str, type] = {
    "data": DataSettings,
    "data pipeline": PipelineOptions,
    "model": ModelSettings,
    "objective": ObjectiveSettings,
    "optimisation": OptimisationSettings,
    "hardware": HardwareSettings,
    "records and stopping": RecordSettings,
    "checkpoints": CheckpointSettings,
    "evaluation": EvaluationSettings,
}
"""Groups of flags in the order in which --help lists them."""


@dataclass(frozen=True)
class Config(
    EvaluationSettings,
    CheckpointSettings,
    RecordSettings,
    HardwareSettings,
    OptimisationSettings,
    ObjectiveSettings,
    ModelSettings,
    PipelineOptions,
    DataSettings,
):
    """Settings of one run. Recipes fill them, flags override them, `config.json` records them."""

    recipe: str = "moco-v2"
    """Name of the recipe that sets the defaults."""
    seed: int = 0
    """Seed of the weights, the order of samples, the views and the shuffles."""

    def __post_init__(self) -> None:
        """Check what can be checked without the data; raises ConfigError."""
        # the command line and config.json give these as text; the dataclass is frozen
        for name in ("knn_train", "knn_val", "init", "out"):
            object.__setattr__(self, name, _place(getattr(self, name)))
        object.__setattr__(self, "views", views.resolved(self.views, self.image_size))
        if self.channels == 1:  # the defaults are of three
            for name, three, one in zip(("mean", "std"), usual_normalisation(3), usual_normalisation(1), strict=True):
                object.__setattr__(self, name, one if getattr(self, name) == three else getattr(self, name))
        sets = tuple(_place(each) for each in self.sets)
        object.__setattr__(self, "shards", sets[0] if len(sets) == 1 else sets)
        check(self)

    @property
    def negatives(self) -> int:
        """Number of negatives per query."""
        return self.batch_size - 1 if self.mechanism in IN_BATCH else self.queue_size

    @property
    def loss_scale(self) -> float:
        """What the mean InfoNCE of all queries is multiplied with."""
        return loss_scale(self.mechanism, self.symmetric, self.temperature)

    @property
    def chance(self) -> float:
        """The loss if all logits were equal."""
        return self.loss_scale * math.log(self.negatives + 1)

    def per_rank_batch(self, world_size: int) -> int:
        """Images of one rank's batch; raises ConfigError where the batch cannot be divided into equal parts."""
        parts = world_size * self.accumulate * self.bn_splits  # BatchNorm groups, except with --batch-norm sync
        if self.batch_size % parts:
            below, above = self.batch_size // parts * parts, -(-self.batch_size // parts) * parts
            choice = f"use {below} or {above}" if below else f"use {above}"
            what = f"{world_size} rank" + "s" * (world_size > 1)
            what += f" × {self.accumulate} micro-batches" if self.accumulate > 1 else ""
            what += f" × {self.bn_splits} BN splits" if self.bn_splits > 1 else ""
            raise ConfigError(f"--batch-size {self.batch_size} is not divisible by {what}; {choice}")
        groups = self.accumulate if self.batch_norm == "sync" else parts
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

    def milestone_fractions(self) -> tuple[float, ...]:
        """The milestones as fractions of the run; raises ConfigError for those that are none.

        It is not checked with the other settings: runs that took epochs for fractions recorded them, and are read.
        """
        return flags.as_fractions(self.milestones, None if self.steps is not None else self.epochs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as written to config.json and into checkpoints."""
        return plain(self)

    @classmethod
    def check_known(cls, values: dict[str, Any]) -> None:
        """Raise ConfigError for a key of recorded settings that is not a setting."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        require(
            not unknown,
            f"unknown settings {unknown} in the recorded configuration; use the version of fastmoco that wrote it",
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """The inverse of `to_dict`, and of config.json; raises ConfigError for a key that is not a setting."""
        values = {name: value for name, value in values.items() if name not in RECORDED}
        cls.check_known(values)
        # JSON has lists
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        # a run that is older than a setting had what is now the setting's default
        return cls(**values)


def loss_scale(mechanism: str, symmetric: bool, temperature: float) -> float:
    """What the mean InfoNCE of all queries is multiplied with: 1, except for `--mechanism batch`.

    There the loss is 2τ InfoNCE, and with both views the sum of two such losses (arXiv 2104.02057, algorithm 1).
    """
    return 2 * temperature * (2 if symmetric else 1) if mechanism == "batch" else 1.0


def _place(value: Any) -> Any:
    """A path as a Path, a URL as it is, and None."""
    value = local(value) if isinstance(value, str) else value
    return value if value is None or is_url(value) else Path(value)


def check(config: Config) -> None:
    """Raise ConfigError for the first setting that cannot work."""
    _check_encoder(config)
    _check_numbers(config)
    require(
        config.steps is not None or config.epochs is not None,
        "neither --epochs nor --steps is given; give one of them",
    )
    require(
        config.knn_every == 0 or config.knn_val is not None,
        f"--knn-every {config.knn_every} needs a labelled set to classify; add --knn-val SHARDS",
    )
    views.check(config)
    _check_mechanism(config)
    _check_sets(config)
    _check_stream(config)


def _check_encoder(config: Config) -> None:
    architectures.check_arch(config.arch)
    flags.share(config, "drop_path", "mean", below_one=True)
    flags.positive(config, "std")
    require(config.channels in CHANNELS, f"--channels is {config.channels}; it must be 3, or 1 for grey images")
    each = "one each for red, green and blue" if config.channels == 3 else "one, for --channels 1"
    for name in ("mean", "std"):
        values = getattr(config, name)
        given = f"{flags.flag(name)} {' '.join(map(str, values))}"
        require(len(values) == config.channels, f"{given} has {counted(len(values), 'value')}; give {each}")
    if architectures.by_timm(config.arch):
        require(
            not config.zero_init_residual,
            f"--zero-init-residual applies to torchvision's ResNets, and --arch {config.arch} is initialised by timm; "
            "give --no-zero-init-residual",
        )
        return
    require(
        config.drop_path == 0,
        f"--drop-path {config.drop_path:g} applies to encoders of timm, and --arch {config.arch} has no stochastic "
        f"depth; leave it out, or use one of timm's, such as {architectures.TIMM}resnet50",
    )


def _check_numbers(config: Config) -> None:
    # the pipeline's flags have their ranges in pipelines.options, where their names and defaults are
    for name, allowed in config.out_of_range():
        raise ConfigError(f"{flags.flag(name)} is {getattr(config, name)}; it must be {allowed}")
    flags.at_least(1, config, "feature_dim", "head_layers", "head_width", "queue_size", "bn_splits", "log_every")
    flags.at_least(1, config, "batch_size", "accumulate")
    flags.at_least(1, config, "epochs", "steps", "images_per_epoch", "decay_steps", "base_batch_size", "knn_k")
    flags.at_least(0, config, "max_rollbacks", "profile", "check_every", "knn_every", "seed", "weight_decay")
    config.check_checkpoints()
    flags.at_least(16, config, "image_size")  # the five strides of a ResNet leave one pixel
    flags.check_sizes(config)
    flags.positive(config, "rank_timeout", "temperature", "knn_temperature", "base_lr", "lr")
    flags.share(config, "momentum_key", "decay", "crop_min")
    flags.positive(config, "crop_min")
    if config.warmup >= 1 and config.epochs and config.steps is None:
        epochs, share = f"{config.warmup:g} of {config.epochs} epochs", config.warmup / config.epochs
        raise ConfigError(f"--warmup is {config.warmup}; it is a fraction of the run: for {epochs} give {share:.4g}")
    flags.share(config, "momentum", "bank_momentum", "warmup", below_one=True)


def _check_mechanism(config: Config) -> None:
    require(
        config.batch_norm != "sync" or config.bn_splits == 1,
        f"--bn-splits {config.bn_splits} splits the batch that --batch-norm sync joins; leave out one of them",
    )
    require(
        config.batch_norm_kernel == "torch" or not config.compile,
        "--batch-norm-kernel fused and --compile both fuse BatchNorm; leave one of them out",
    )
    _check_heads(config)
    require(
        config.queue_dtype == "float32" or config.mechanism == "queue",
        f"--queue-dtype {config.queue_dtype} applies to --mechanism queue only, which {config.mechanism} is not; "
        "leave it out",
    )
    require(
        config.accumulate == 1 or config.mechanism != "end-to-end",
        f"--accumulate {config.accumulate} and --mechanism end-to-end exclude each other: its loss needs the gradients "
        "of all keys of the batch at once; leave out --accumulate (--checkpoint-activations saves memory, too), or use "
        "--mechanism batch, whose negatives are of the batch as well, but whose keys have no gradients",
    )
    if config.cuda_graphs:
        _check_graphs(config)
    if config.mechanism != "memory-bank":
        return
    require(
        not config.symmetric,
        "--symmetric encodes keys of both views, but --mechanism memory-bank encodes no keys; give --no-symmetric",
    )
    require(
        config.stream is None,
        "--mechanism memory-bank stores a feature for each image by its id, but images of --stream have no ids; "
        "index the tars with fastmoco index and use --shards",
    )


def _check_heads(config: Config) -> None:
    with_batchnorm = config.head == "mlp-bn"
    require(
        with_batchnorm or config.head_layers == ModelSettings.head_layers,
        # a recipe may have set it
        f"--head-layers {config.head_layers} applies to --head mlp-bn only, which {config.head} is not; give "
        f"--head-layers {ModelSettings.head_layers}, the default",
    )
    require(
        with_batchnorm or config.predictor != "none" or config.head_width == ModelSettings.head_width,
        f"--head-width {config.head_width} applies to --head mlp-bn and --predictor only; leave it out",
    )
    require(
        config.predictor == "none" or config.mechanism in ("queue", "batch"),
        f"--predictor {config.predictor} predicts the keys of a momentum encoder, which --mechanism {config.mechanism} "
        "does not have; use --predictor none",
    )


def _check_graphs(config: Config) -> None:
    for unfit, what, why in (
        (config.compile, "--compile", "both replace the encoders' launches"),
        (config.batch_norm == "sync", "--batch-norm sync", "its messages between ranks are not captured"),
        (bool(config.early_sizes), "--early-sizes", "a graph has images of one size"),
        (config.symmetric, "--symmetric", "a graph cannot run twice before its backward pass"),
        (config.mechanism == "batch", "--mechanism batch", "it has not been tested with its heads"),
        (config.checkpoint_activations, "--checkpoint-activations", "a graph keeps all of its memory"),
        (config.drop_path > 0, "--drop-path", "a graph would drop the same blocks at every step"),
        (
            config.mechanism == "end-to-end",
            "--mechanism end-to-end",
            "it has not been tested with two trained encoders",
        ),
    ):
        require(not unfit, f"--cuda-graphs does not work with {what}: {why}; leave out one of them")


def _check_sets(config: Config) -> None:
    sets, weights = config.sets, config.weights
    require(len(sets) > 0, "--shards names no set; give one or more")
    require(
        not weights or len(weights) == len(sets),
        f"--weights {' '.join(map(str, weights))} has {counted(len(weights), 'number')}, and --shards "
        f"{counted(len(sets), 'set')}; give one weight for each set",
    )
    twice = next((each for each in sets if sets.count(each) > 1), None)
    require(twice is None, f"--shards names {twice} more than once; give it once, and --weights to repeat its images")
    require(
        len(sets) == 1 or config.knn_every == 0 or config.knn_train is not None,
        f"--knn-every {config.knn_every} needs one labelled set with the neighbours, and --shards names {len(sets)}; "
        "add --knn-train SHARDS",
    )


def _check_stream(config: Config) -> None:
    if config.stream is None:
        require(
            config.images_per_epoch is None,
            f"--images-per-epoch {config.images_per_epoch} applies to --stream only; leave it out",
        )
        return
    require(
        # its default: settings do not record which flags were given
        config.shards == Path("shards"),
        f"--shards {' '.join(map(str, config.sets))} and --stream {config.stream} are both given; give one of them",
    )
    require(
        not config.weights, f"--weights {' '.join(map(str, config.weights))} apply to --shards only; leave them out"
    )
    require(config.order == "auto", f"--order {config.order} applies to --shards only; leave it out")
    require(
        config.channels == 3,
        "--channels 1 is for sets that record that all images are grey, and --stream has no record; leave it out, or "
        "index the tars with fastmoco index and use --shards",
    )
    require(
        config.knn_every == 0 or config.knn_train is not None,
        "--knn-every needs labels, which --stream does not have; add --knn-train SHARDS",
    )
