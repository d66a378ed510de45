"""An encoder without its head under the names of torchvision, timm and detectron2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastmoco.config import ARCHITECTURES
from fastmoco.layouts.files import LayoutError, read
from fastmoco.layouts.original import QUERY
from fastmoco.model.encoders import Backbone, backbone

_DETECTRON2 = {
    **{f"conv{n}": f"conv{n}" for n in (1, 2, 3)},
    **{f"bn{n}": f"conv{n}.norm" for n in (1, 2, 3)},
    "downsample.0": "shortcut",
    "downsample.1": "shortcut.norm",
}


def backbone_weights(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The query encoder of a checkpoint without its head, under the names of torchvision and timm."""
    prefix = "backbone."
    return {
        name[len(prefix) :]: value.contiguous()
        for name, value in state["query_encoder"].items()
        if name.startswith(prefix)
    }


def detectron2_name(name: str) -> str:
    """Detectron2's name of a tensor that torchvision calls `name`: `layer1.0.bn2.bias` is `res2.0.conv2.norm.bias`.

    Its ResNet has a `stem` and the stages `res2` to `res5`, and a BatchNorm is the `norm` of its convolution.
    """
    module, leaf = name.rsplit(".", 1)
    place = "stem"
    if module.startswith("layer"):
        stage, block, module = module.split(".", 2)
        place = f"res{int(stage.removeprefix('layer')) + 1}.{block}"
    return f"{place}.{_DETECTRON2[module]}.{leaf}"


def detectron2_arrays(weights: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Weights under torchvision's names as arrays under detectron2's."""
    return {detectron2_name(name): value.numpy() for name, value in weights.items()}


def read_backbone(path: Path, arch: str) -> Backbone:
    """A torchvision ResNet's weights from a file, its classifier left out, in evaluation mode.

    Args:
        path: state dictionary under torchvision's names, by torch.save or as safetensors.
        arch: one of ARCHITECTURES.

    Raises:
        LayoutError: for an unknown architecture, or a file that does not hold its weights.
    """
    if arch not in ARCHITECTURES:
        raise LayoutError(f"unknown --arch {arch!r}; known: {', '.join(ARCHITECTURES)}")
    weights = read(path)
    if isinstance(weights, dict) and any(str(n).startswith(QUERY) for n in weights.get("state_dict", ())):
        raise LayoutError(
            f"{path} is a checkpoint of the original MoCo; import it: python -m fastmoco.export --from-moco {path}"
        )
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise LayoutError(f"{path} is no state dictionary of a torchvision model; save model.state_dict()")
    net = backbone(arch)
    try:
        net.load_state_dict({name: value for name, value in weights.items() if not name.startswith("fc.")})
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise LayoutError(f"{path} does not hold the weights of a {arch}: {first[:200]}; is --arch right?") from error
    return net.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
