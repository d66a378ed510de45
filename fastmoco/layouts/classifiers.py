"""The classifier of a fine-tuned encoder as timm's model has it: its names, shapes, and the layers around it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fastmoco.layouts.files import LayoutError
from fastmoco.model.encoders import Backbone
from fastmoco.model.timm_encoders import timm_name, with_classifier

_SHOWN = 3
"""Parts of a list that a message names."""
_TOLERANCE = 1e-3
"""Of the largest score. Rounding in fp32 through a deep encoder is a hundredth of it; another computation, as VOLO's,
differs by far more."""


def timms_head(
    arch: str, image_size: int, channels: int, tensors: Mapping[str, torch.Tensor], fc: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What timm's classifier of an encoder needs besides the encoder's tensors, under timm's names.

    Each classifier gets the weights of the one that was trained: timm averages those of distilled encoders. A
    BatchNorm before it becomes the identity.

    Args:
        arch: An encoder of timm.
        image_size: Side of its images.
        channels: Of its images.
        tensors: The encoder's.
        fc: `fc.weight` [C, D] and `fc.bias` [C].

    Raises:
        LayoutError: timm's model has no classifier, or other layers.
    """
    with torch.device("meta"):  # names and shapes alone
        net = with_classifier(arch, image_size, channels, len(fc["fc.bias"]))
    wanted = net.state_dict()
    missing = [name for name in wanted if name not in tensors]
    if not missing:
        raise _refused(arch, "has no classifier")
    made: dict[str, torch.Tensor] = {}
    for place in dict.fromkeys(name.rpartition(".")[0] for name in missing):
        made |= {f"{place}.{name}": value for name, value in _layer(net.get_submodule(place), fc).items()}
    given = {name: value.shape for name, value in {**tensors, **made}.items()}
    odd = [f"{name} {list(value.shape)}" for name, value in wanted.items() if given.get(name) != value.shape]
    odd += [f"no {name}" for name in given if name not in wanted]
    if odd:
        raise _refused(arch, f"has {_listed(odd)} in place of {_trained(fc)}")
    return made


def check_scores(
    encoder: Backbone, image_size: int, tensors: Mapping[str, torch.Tensor], fc: Mapping[str, torch.Tensor]
) -> None:
    """Raise LayoutError unless timm's model with `tensors` gives the scores of the encoder with its classifier.

    Names and shapes do not show it: VOLO adds the largest score of any patch by a second classifier.
    """
    theirs = with_classifier(encoder.arch, image_size, encoder.channels, len(fc["fc.bias"])).eval()
    theirs.load_state_dict(dict(tensors))
    shape = (2, encoder.channels, image_size, image_size)
    images_BCHW = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted_BC = nn.functional.linear(encoder(images_BCHW), fc["fc.weight"], fc["fc.bias"])
        found_BC = theirs(images_BCHW)
    # a score that is not a number is not equal, either
    if not (found_BC - wanted_BC).abs().max() <= _TOLERANCE * wanted_BC.abs().max():
        places = [name.removesuffix(".bias") for name, value in tensors.items() if value is fc["fc.bias"]]
        raise _refused(encoder.arch, f"computes other scores by {_listed(places)} than {_trained(fc)}")


def _layer(module: nn.Module, fc: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a layer of timm's classifier; none for layers that fine-tuning does not have."""
    if type(module) is nn.BatchNorm1d or type(module) is nn.BatchNorm2d:  # not those of timm with an activation
        zeros, ones = torch.zeros(module.num_features), torch.ones(module.num_features)
        # the root by which it divides in evaluation mode
        scale = ones * math.sqrt(1 + module.eps)
        return {
            "weight": scale, "bias": zeros, "running_mean": zeros.clone(), "running_var": ones,
            "num_batches_tracked": torch.tensor(0),
        }  # fmt: skip
    weight_CD = fc["fc.weight"]
    of_pixels = torch.Size((*weight_CD.shape, 1, 1))  # a convolution after the pooling
    if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.shape in (weight_CD.shape, of_pixels):
        return {"weight": weight_CD.reshape(module.weight.shape), "bias": fc["fc.bias"]}
    return {}


def _trained(fc: Mapping[str, torch.Tensor]) -> str:
    return f"the one linear layer {list(fc['fc.weight'].shape)} that fastmoco finetune trains"


def _refused(arch: str, why: str) -> LayoutError:
    return LayoutError(
        f"the classifier of {arch} cannot be written for timm: timm's {timm_name(arch)[0]} {why}; fastmoco embed, knn "
        "and linear take the file without its classifier, and docs/how-to/finetune.md shows how to write the encoder "
        "alone, and how to compute the scores"
    )


def _listed(parts: Sequence[str]) -> str:
    more = len(parts) - _SHOWN
    return f"{', '.join(parts[:_SHOWN])} and {more} more" if more > 0 else " and ".join(parts)
