"""Weights that others trained, to begin with."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch

from fastmoco.config import ConfigError, require
from fastmoco.model.encoders import Backbone


def load_torchvision(net: Backbone, path: Path) -> None:
    """Load a torchvision ResNet's state_dict, saved by torch.save, all but its classifier `fc`.

    Raises:
        ConfigError: the file is none, or its tensors are not exactly those of `net`.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"--init {path} cannot be read: {reason}; give a state_dict saved by torch.save") from error
    tensors = isinstance(found, dict) and all(isinstance(value, torch.Tensor) for value in found.values())
    require(tensors, f"--init {path} is no state_dict of tensors; save model.state_dict() of a torchvision ResNet")
    weights = {name: value for name, value in found.items() if name not in ("fc.weight", "fc.bias")}
    wanted = net.state_dict()
    wrong = [f"{name} is missing" for name in wanted if name not in weights]
    wrong += [f"{name} is too many" for name in weights if name not in wanted]
    wrong += [
        f"{name} has the shape {list(weights[name].shape)}, not {list(value.shape)}"
        for name, value in wanted.items()
        if name in weights and weights[name].shape != value.shape
    ]
    require(
        not wrong,
        f"--init {path} does not fit the encoder: {'; '.join(wrong[:3])}, {len(wrong)} in all; "
        "give weights of the architecture that --arch names",
    )
    net.load_state_dict(weights)
