"""The parts of a MoCo model by the settings."""

from __future__ import annotations

import torch
from torch import nn

from fastmoco.config import Config, ConfigError
from fastmoco.flags import require
from fastmoco.model.batchnorm import (
    BatchNorm2d,
    SyncBatchNorm2d,
    has_batchnorm,
    replace_batchnorm,
    split_batchnorm,
    unlike_batchnorm,
)
from fastmoco.model.dictionary import BatchKeys, Dictionary, Queue
from fastmoco.model.encoders import Encoder
from fastmoco.model.end_to_end import InBatch
from fastmoco.model.fused_batchnorm import fuse_batchnorm
from fastmoco.model.memory_bank import MemoryBank


def new_encoder(config: Config, of_keys: bool = False) -> Encoder:
    """A new encoder with the BatchNorm that is set.

    Args:
        config: Settings of the run.
        of_keys: Whether it encodes keys: without a predictor, and unless it is trained without stochastic depth.

    Raises:
        ConfigError: The encoder does not fit the settings.
    """
    averaged = of_keys and config.mechanism != "end-to-end"
    encoder = Encoder(
        config.arch, config.head, config.feature_dim, config.zero_init_residual,
        head_layers=config.head_layers, head_width=config.head_width, predictor="none" if of_keys else config.predictor,
        image_size=config.image_size, drop_path=0.0 if averaged else config.drop_path,
        channels=config.channels,
    )  # fmt: skip
    encoder.backbone.image_mean, encoder.backbone.image_std = config.mean, config.std
    _check_batchnorm(config, encoder)
    parts: tuple[nn.Module | None, ...] = (encoder,)
    if config.batch_norm_kernel == "fused":  # it counts its batches in launches that it makes anyway
        fuse_batchnorm(encoder, config.bn_splits, over_ranks=config.batch_norm == "sync")
        parts = encoder.head, encoder.predictor
    for part in parts:
        if part is None:
            continue
        if config.bn_splits > 1:
            split_batchnorm(part, config.bn_splits)
        elif unlike_batchnorm(part) is None:
            replace_batchnorm(part, SyncBatchNorm2d if config.batch_norm == "sync" else BatchNorm2d)
    encoder.count_together()
    if config.checkpoint_activations and not averaged:
        _recompute(config, encoder)
    return encoder


def _recompute(config: Config, encoder: Encoder) -> None:
    """Have an encoder compute its activations again in the backward pass, or raise ConfigError."""
    what = f"--checkpoint-activations: --arch {config.arch}"
    unlike = unlike_batchnorm(encoder.backbone)
    require(
        unlike is None,
        f"{what} normalises by the batch in {unlike}, whose statistics would move twice; leave it out",
    )
    try:
        encoder.backbone.set_grad_checkpointing(True)  # pyright: ignore[reportCallIssue]
    except (AttributeError, AssertionError) as error:  # encoders of timm without it assert that it is off
        raise ConfigError(f"{what} cannot compute them again; leave it out") from error


def _check_batchnorm(config: Config, encoder: Encoder) -> None:
    """Raise ConfigError for a setting of BatchNorm that this encoder cannot follow."""
    for on, given, remedy in (
        (config.batch_norm == "sync", "--batch-norm sync", "give --batch-norm shuffle"),  # recipes have sync
        (config.bn_splits > 1, f"--bn-splits {config.bn_splits}", "leave it out"),
        (config.batch_norm_kernel == "fused", "--batch-norm-kernel fused", "leave it out"),
    ):
        if not on:
            continue
        what = f"{given}: --arch {config.arch} with --head {config.head}"
        require(has_batchnorm(encoder), f"{what} has no BatchNorm; {remedy}")
        unlike = unlike_batchnorm(encoder.backbone, images_alone=given == "--batch-norm-kernel fused")
        require(unlike is None, f"{what} normalises by the batch in {unlike}, which cannot be replaced; {remedy}")


def new_dictionary(config: Config, samples: int | None) -> Dictionary:
    """A new dictionary; the memory bank needs the number of samples."""
    if config.mechanism == "queue":
        return Queue(config.queue_size, config.feature_dim, dtype=getattr(torch, config.queue_dtype))
    if config.mechanism == "batch":
        return BatchKeys()
    if config.mechanism == "end-to-end":
        return InBatch()
    if samples is None:
        raise ValueError("the memory bank needs the number of samples; pass it as `samples`")
    return MemoryBank(samples, config.queue_size, config.feature_dim, config.bank_momentum, config.seed)
