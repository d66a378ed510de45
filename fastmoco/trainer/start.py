"""The weights that a new run begins with: those of --init."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastmoco.config import Config
from fastmoco.flags import named
from fastmoco.layouts.encoders import read_encoder
from fastmoco.layouts.grey import with_channels
from fastmoco.layouts.sound import check_finite
from fastmoco.model.moco import MoCo
from fastmoco.ranks.world import World
from shards.words import counted

log = logging.getLogger(__name__)


def begin_from(model: MoCo, init: Path, config: Config, here: World) -> None:
    """Load the weights of --init into a new model.

    Of a checkpoint of fastmoco train both encoders and the head are taken if the head has the same shape, of all other
    files, and with another head, the encoder alone, which both encoders then begin with. The queue, the optimiser and
    the schedule are new in any case. Of an encoder of three channels, one of a single channel begins with the sum of
    the first convolution's weights over the channels.

    Raises:
        LayoutError: the file does not hold an encoder of the run's architecture and channels.
    """
    with named("--init"):
        held = read_encoder(init, config.arch, config.image_size)
        weights = with_channels(init, held, config.channels)
        state = weights.checkpoint
        whole = state is not None and _shapes(state["query_encoder"]) == _shapes(model.encoder.state_dict())
        parts = _parts(model, state) if state is not None and whole else {}
        for name, tensors in parts.items():
            check_finite(init, {f"{name}.{key}": value for key, value in tensors.items()})
    if not parts:
        weights.load_into(model.encoder.backbone)
        model.copy_to_key_encoder()
        taken = "the encoder, for queries and keys; the head is new"
        if state is not None:
            taken += f", since that of the file ({_head(state['config'])}) is not the run's ({_head(vars(config))})"
    else:
        modules: dict[str, nn.Module] = model.parts()
        for name, tensors in parts.items():
            modules[name].load_state_dict(tensors)
        if "key_encoder" not in parts:
            model.copy_to_key_encoder()
        taken = " and ".join(name.replace("_", " ") for name in parts) + ", with the head"
    if weights.channels != held.channels:
        taken += "; its first convolution is summed over the three channels"
    mean, std = held.mean or config.mean, held.std or config.std  # a file may not say them
    if here.is_main and held.channels == config.channels and (mean, std) != (config.mean, config.std):
        log.warning(
            "%s was trained with mean %s and std %s, this run normalises with %s and %s; --mean %s --std %s keeps them",
            init, *map(list, (mean, std, config.mean, config.std)), *(" ".join(map(str, each)) for each in (mean, std)),
        )  # fmt: skip
    if here.is_main:
        log.info("begins with %s: %s; queue, optimiser and schedule are new", init, taken)


def _parts(model: MoCo, state: dict[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    """The encoders' states in a checkpoint, of those that the model has."""
    names = ["query_encoder"]
    # end to end the key encoder is another kind of encoder than a moving average
    if state["config"].get("mechanism", "queue") == model.config.mechanism and "key_encoder" in model.parts():
        names.append("key_encoder")
    return {name: state[name] for name in names if name in state}


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _head(settings: dict[str, Any]) -> str:
    """Head and predictor in words, with all that decides their shapes."""
    head, predictor = settings["head"], settings.get("predictor", "none")
    parts = [head, f"{settings['feature_dim']} dimensions"]
    if head == "mlp-bn":
        parts.append(counted(settings["head_layers"], "layer"))
    if predictor != "none":
        parts.append(f"predictor {predictor}")
    if head == "mlp-bn" or predictor != "none":
        parts.append(f"--head-width {settings['head_width']}")
    return ", ".join(parts)
