"""The weights of an encoder from a file, in whichever layout they are.

| layout | recognised by | architecture |
| --- | --- | --- |
| checkpoint of fastmoco.train | its `format` | recorded |
| original-MoCo checkpoint | names that begin with `encoder_q.`, possibly behind `module.` | recorded, or `arch` |
| state dictionary of torchvision or timm, by torch.save or as safetensors | tensors alone | `arch` |
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastmoco.config import ARCHITECTURES, Config, ConfigError
from fastmoco.layouts.files import LayoutError, read
from fastmoco.layouts.original import QUERY, tensors_of
from fastmoco.model.encoders import Backbone, backbone
from fastmoco.runs.checkpoint import FORMAT

BACKBONE = "backbone."
"""What the names of the encoder's tensors begin with in a checkpoint of this program, in which `head.` is the head."""
# `fc`: the classifier of torchvision and timm, and the original MoCo's head. `head`: this program's
_HEADS = ("fc.", "head.")


@dataclass(frozen=True)
class EncoderWeights:
    """A ResNet's weights without its head.

    Attributes:
        layout: what the file was recognised as.
        arch: its architecture.
        tensors: parameters and buffers under torchvision's names, exactly those of the architecture.
        left_out: names of the head's tensors in the file.
        checkpoint: all that the file holds, for a checkpoint of fastmoco.train; else None.
    """

    layout: str
    arch: str
    tensors: dict[str, torch.Tensor]
    left_out: tuple[str, ...] = ()
    checkpoint: dict[str, Any] | None = None

    def load_into(self, net: Backbone) -> None:
        """Copy the weights into a backbone of the same architecture."""
        net.load_state_dict(self.tensors)

    def encoder(self) -> Backbone:
        """A backbone with these weights, in evaluation mode, channels-last, on the CPU."""
        net = backbone(self.arch)
        self.load_into(net)
        # channels-last as in training: another layout selects other kernels, which round differently
        return net.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def read_encoder(path: Path, arch: str | None = None) -> EncoderWeights:
    """The encoder's weights in a file.

    Args:
        path: a file in one of the layouts above.
        arch: the architecture, one of ARCHITECTURES. A file that records its own needs none, and must agree.

    Raises:
        LayoutError: the file cannot be read, is in none of the layouts, or does not hold a ResNet of that architecture.
    """
    if arch is not None and arch not in ARCHITECTURES:
        raise LayoutError(f"unknown --arch {arch!r}; known: {', '.join(ARCHITECTURES)}")
    # recognised by its suffix: reading a pickle to find out what it is would run its code
    if path.suffix == ".pkl":
        raise LayoutError(
            f"{path} is a pickle, which may run code when it is read; give the checkpoint or the state dictionary that "
            "it was made from"
        )
    # `arch` decides only for files that do not record an architecture; others must agree with it
    weights = _recognised(path, read(path), arch)
    if arch is not None and weights.arch != arch:
        raise LayoutError(f"{path} holds a {weights.arch}, not a {arch}; give --arch {weights.arch}")
    return _checked(path, weights)


def encoder_of(state: dict[str, Any]) -> EncoderWeights:
    """The query encoder's weights in a checkpoint of fastmoco.train that has been read."""
    tensors, left_out = _split(state["query_encoder"], BACKBONE)
    return EncoderWeights("checkpoint of fastmoco.train", state["config"]["arch"], tensors, left_out, state)


def _recognised(path: Path, found: Any, arch: str | None) -> EncoderWeights:
    if isinstance(found, dict) and found.get("format") == FORMAT:
        try:
            Config.from_dict(found["config"])  # a setting that is unknown here may change what the weights mean
        except ConfigError as error:
            raise LayoutError(f"{path}: {error}") from error
        return encoder_of(found)
    if isinstance(found, dict) and str(found.get("format")).startswith("fastmoco-"):
        raise LayoutError(f"{path} is a checkpoint of the format {found['format']}, which holds no pretrained encoder")
    # the other layouts have no `format`; the names of the tensors distinguish them
    tensors = tensors_of(found)
    if tensors is None:
        raise LayoutError(
            f"{path} is no checkpoint of fastmoco.train or the original MoCo, and no state dictionary of tensors; "
            "save model.state_dict() of a torchvision ResNet"
        )
    layout, recorded = "state dictionary", arch
    if any(name.startswith(QUERY) for name in tensors):
        layout, recorded = "original-MoCo checkpoint", found.get("arch", arch)
        tensors = {name: value for name, value in tensors.items() if name.startswith(QUERY)}
    if recorded is None:
        raise LayoutError(f"{path} is a {layout} that does not record its architecture; add --arch, as --arch resnet50")
    if recorded not in ARCHITECTURES:
        raise LayoutError(f"{path} has an encoder {recorded!r}; known: {', '.join(ARCHITECTURES)}")
    return EncoderWeights(layout, recorded, *_split(tensors, QUERY))


def _split(tensors: dict[str, torch.Tensor], prefix: str) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The encoder's tensors under torchvision's names, and the names of the head's."""
    named = {name.removeprefix(prefix): value for name, value in tensors.items()}
    # a checkpoint of training has channels-last weights; other programs expect torch's default strides
    encoder = {name: value.contiguous() for name, value in named.items() if not name.startswith(_HEADS)}
    return encoder, tuple(name for name in named if name not in encoder)


def _checked(path: Path, weights: EncoderWeights) -> EncoderWeights:
    """The weights, if they are exactly those of their architecture."""
    with torch.device("meta"):  # names and shapes alone, without memory or time for values
        wanted = backbone(weights.arch).state_dict()
    # files from before torch 0.4.1 have no counters of batches; they matter only to a BatchNorm without momentum
    counters = {name: torch.tensor(0) for name in wanted if name.endswith("num_batches_tracked")}
    given = counters | weights.tensors
    wrong = [f"{name} is missing" for name in wanted if name not in given]
    wrong += [f"{name} is unexpected" for name in given if name not in wanted]
    wrong += [
        f"{name} has the shape {list(given[name].shape)}, not {list(value.shape)}"
        for name, value in wanted.items()
        if name in given and given[name].shape != value.shape
    ]
    if wrong:
        raise LayoutError(
            f"{path} ({weights.layout}) does not hold the weights of a {weights.arch}: {'; '.join(wrong[:3])}, "
            f"{len(wrong)} in all; is --arch right?"
        )
    return replace(weights, tensors={name: given[name] for name in wanted})
