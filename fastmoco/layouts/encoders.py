"""The weights of an encoder from a file, in whichever layout they are (docs/evaluation.md lists the layouts)."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastmoco.architectures import by_timm, known, names
from fastmoco.checkpoints import checkpoint
from fastmoco.config import Config, ConfigError
from fastmoco.layouts.architecture import arch_of, channels_of, check_recorded
from fastmoco.layouts.classifiers import check_scores, timms_head
from fastmoco.layouts.files import MADE_BY, LayoutError, read
from fastmoco.layouts.finding import find, flat
from fastmoco.layouts.images import of_images, said_of_images
from fastmoco.layouts.of_timm import check_heads, find_of_timm, renamed_arch
from fastmoco.layouts.sound import check_finite
from fastmoco.model.encoders import Backbone, backbone, fixed_size, shapes, usual_size
from fastmoco.scalings import plain
from shards.format.scaling import Scaling
from shards.words import counted

log = logging.getLogger(__name__)

BACKBONE = "backbone."
"""What the names of the encoder's tensors begin with in a checkpoint of this program, before `head.` and `predictor.`,
the heads."""
OURS = "checkpoint of fastmoco train"
FINETUNED = "fastmoco-finetune/1"
"""Format of the checkpoints of fastmoco finetune: `finetune` (what determines the weights), `arch`, `image_size`,
`mean`, `std`, `classes`, `progress` {step, owed}, `encoder`, `head`, `optimiser`, `scaler`."""


@dataclass(frozen=True)
class Head:
    """The classifier of a fine-tuned encoder.

    Attributes:
        tensors: `fc.weight` float32 [C, D] and `fc.bias` float32 [C], as torchvision and timm name them.
        classes: names of the C classes, in the order of the scores.
    """

    tensors: dict[str, torch.Tensor]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class EncoderWeights:
    """An encoder's weights without its head.

    Attributes:
        layout: what the file was recognised as.
        arch: its architecture.
        tensors: parameters and buffers under torchvision's or timm's names, exactly those of the architecture, in
            float32.
        left_out: names of the head's tensors in the file.
        others: names of the file's other tensors, which are not taken either.
        checkpoint: all that the file holds, for a checkpoint of fastmoco train; else None.
        converted: data types other than float32 that the file has its weights in.
        image_size: side of the views that it was trained on; None where the file does not say it.
        head: the classifier of a checkpoint of fastmoco finetune.
        mean: means of the channels that its images were normalised with; None where the file does not say it.
        std: standard deviations, likewise.
        scaling: by which the 16-bit values of its images were scaled to [0, 1]; None with 8 bits, or where the file
            does not say it, or several sets were scaled by their own.
        bits: of its images, 16 or 8; 8 where the file does not say it.
    """

    layout: str
    arch: str
    tensors: dict[str, torch.Tensor]
    left_out: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    checkpoint: dict[str, Any] | None = None
    converted: tuple[str, ...] = ()
    image_size: int | None = None
    head: Head | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scaling: Scaling | None = None
    bits: int = 8

    @property
    def channels(self) -> int:
        """Channels of its images, 3 or 1."""
        return channels_of(self.tensors, self.arch, self.image_size)

    def load_into(self, net: Backbone) -> None:
        """Copy the weights into a backbone of the same architecture."""
        net.load_state_dict(self.tensors)

    def encoder(self) -> Backbone:
        """A backbone with these weights, in evaluation mode, channels-last, on the CPU."""
        net = backbone(self.arch, image_size=self.image_size, channels=self.channels)
        net.image_mean, net.image_std = self.mean or net.image_mean, self.std or net.image_std
        net.image_scaling, net.image_bits = self.scaling, self.bits
        self.load_into(net)
        # channels-last as in training: another layout selects other kernels, which round differently
        return net.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def under_timms_names(self) -> dict[str, torch.Tensor]:
        """The weights as timm names them, with the classifier if there is one.

        Raises:
            LayoutError: timm's model cannot have this classifier.
        """
        if self.head is None:
            return self.tensors
        fc = self.head.tensors
        if not by_timm(self.arch):
            return self.tensors | fc
        size = self.image_size or usual_size(self.arch)
        head = timms_head(self.arch, size, self.channels, self.tensors, fc)
        if len(head) > len(fc):  # a BatchNorm, or several classifiers, of which the names do not show what they do
            check_scores(self.encoder(), size, self.tensors | head, fc)
        return self.tensors | head

    def of_images(self) -> dict[str, Any]:
        """Channels, side, mean, deviation and scaling of its images, those that are known, in plain values."""
        of_channels = {name: list(value) for name in ("mean", "std") if (value := getattr(self, name)) is not None}
        size = {} if self.image_size is None else {"image_size": self.image_size}
        scaled = {"bits": 16} if self.bits == 16 else {}
        if self.scaling is not None:  # by which files of earlier versions say that there are 16
            scaled = {"scaling": plain(self.scaling)}
        return {"channels": self.channels} | size | of_channels | scaled

    def metadata(self) -> dict[str, str]:
        """What safetensors of this program say beside the tensors, by which they are read without `--arch`."""
        return {"arch": self.arch, MADE_BY: json.dumps(self.of_images())}

    def __str__(self) -> str:
        grey = " of one channel" if self.channels == 1 else ""
        parts = [f"{self.layout}, {self.arch}{grey}: {counted(len(self.tensors), 'name')} matched"]
        if self.converted:
            parts.append(f"converted from {', '.join(self.converted)} to float32")
        if self.left_out:
            parts.append(f"left out: {len(self.left_out)} of the head ({_some(self.left_out)})")
        if self.others:
            parts.append(f"not used: {len(self.others)} others ({_some(self.others)})")
        return "; ".join(parts)


def read_encoder(path: Path, arch: str | None = None, image_size: int | None = None) -> EncoderWeights:
    """The encoder's weights in a file, checked; what was recognised is logged.

    Args:
        path: a file of weights, or the folder of a run, whose newest checkpoint is read.
        arch: the architecture; None for the file's, recorded or, of ResNets, found by its shapes.
        image_size: side of the images that it is wanted for, on which the shapes of transformers depend; None for the
            file's.

    Raises:
        LayoutError: the file cannot be read, holds no encoder of that architecture or several, or holds weights that
            are not finite.
        CheckpointError: the folder has no checkpoints.
    """
    if arch is not None and not known(arch):
        raise LayoutError(f"unknown --arch {arch!r}; known: {names()}")
    # recognised by its suffix: reading a pickle to find out what it is would run its code
    if path.suffix == ".pkl":
        raise LayoutError(
            f"{path} is a pickle, which may run code when it is read; give the checkpoint or the state dictionary that "
            "it was made from"
        )
    path = checkpoint.newest_of(path)
    weights = _recognised(path, read(path), arch, image_size)
    if image_size is not None and fixed_size(weights.arch) and weights.image_size not in (None, image_size):
        raise LayoutError(
            f"{path} is for images of {weights.image_size} pixels, and a {weights.arch} takes those that it was built "
            f"for alone; give --image-size {weights.image_size}, not {image_size}"
        )
    check_finite(path, weights.tensors | (weights.head.tensors if weights.head else {}))
    if os.environ.get("RANK", "0") == "0":
        log.info("%s: %s", path, weights)
    return weights


def encoder_of(state: dict[str, Any], path: Path | None = None) -> EncoderWeights:
    """The query encoder's weights in a checkpoint of fastmoco train that has been read, from `path` if it is a file."""
    named = state["query_encoder"]
    inside = [name for name in named if name.startswith(BACKBONE)]  # which may have a `head.` of its own
    # a checkpoint of training has channels-last weights; other programs expect torch's default strides
    tensors = {name.removeprefix(BACKBONE): named[name].contiguous() for name in inside}
    left_out = tuple(name for name in named if not name.startswith(BACKBONE))
    config = state["config"]
    about = of_images(config, state.get("data", {}).get("scaling"), path)
    return EncoderWeights(OURS, config["arch"], tensors, left_out, checkpoint=state, **about)


def _finetuned(path: Path, state: dict[str, Any]) -> EncoderWeights:
    """The weights in a checkpoint of fastmoco finetune."""
    missing = [name for name in ("arch", "image_size", "classes", "encoder", "head") if name not in state]
    if missing:
        raise LayoutError(f"{path} lacks {' and '.join(missing)}, which a {FINETUNED} has; give another checkpoint")
    tensors = {name: value.contiguous() for name, value in state["encoder"].items()}
    head = Head({f"fc.{name}": value for name, value in state["head"].items()}, tuple(state["classes"]))
    layout = "checkpoint of fastmoco finetune"
    about = of_images(state, state.get("scaling"), path)
    return EncoderWeights(layout, state["arch"], tensors, tuple(head.tensors), head=head, **about)


def _recognised(path: Path, content: Any, arch: str | None, image_size: int | None) -> EncoderWeights:
    form = content.get("format") if isinstance(content, dict) else None
    if form == checkpoint.FORMAT:
        missing = [name for name in ("config", "query_encoder") if name not in content]
        if missing:
            raise LayoutError(f"{path} lacks {' and '.join(missing)}, which a {OURS} has; give another checkpoint")
        try:
            Config.check_known(content["config"])  # a setting that is unknown here may change what the weights mean
        except ConfigError as error:
            raise LayoutError(f"{path}: {error}") from error
        weights = encoder_of(content, path)
        arch_of(path, weights.tensors, arch, weights.arch, weights.image_size)
        return _complete(weights)
    if form == FINETUNED:
        weights = _finetuned(path, content)
        arch_of(path, weights.tensors, arch, weights.arch, weights.image_size)
        return _complete(weights)
    if str(form).startswith("fastmoco-"):
        raise LayoutError(f"{path} is a checkpoint of the format {form}, which holds no pretrained encoder")
    recorded = content.get("arch") if isinstance(content, dict) else None
    recorded = recorded if isinstance(recorded, str) else None
    tensors = flat(content)
    recorded = renamed_arch(recorded, tensors)
    check_recorded(path, recorded, arch)
    about = said_of_images(path, content)
    said = arch or recorded
    if said is None or not by_timm(said):
        found = find(path, tensors)
    else:
        found, size = find_of_timm(path, tensors, said)
        about["image_size"] = about.get("image_size") or size or image_size
        check_heads(path, found.tensors, said, recorded)
    held = arch_of(path, found.tensors, arch, recorded, about.get("image_size"))
    layout = f"{found.layout} ({found.taken})"
    return _complete(EncoderWeights(layout, held, found.tensors, found.head, found.others, **about))


def _complete(weights: EncoderWeights) -> EncoderWeights:
    """The weights in float32, in the architecture's order, with a counter of batches for each BatchNorm."""
    # files from before torch 0.4.1 have no counters; they matter only to a BatchNorm without momentum
    wanted = shapes(weights.arch, weights.image_size, weights.channels)
    given = {name: weights.tensors.get(name, torch.tensor(0)) for name in wanted}
    odd = sorted({str(value.dtype) for value in given.values() if _convertible(value)})
    tensors = {name: (value.float() if _convertible(value) else value).contiguous() for name, value in given.items()}
    converted = tuple(name.removeprefix("torch.") for name in odd)
    return replace(weights, tensors=tensors, converted=converted)


def _convertible(value: torch.Tensor) -> bool:
    return value.is_floating_point() and value.dtype != torch.float32


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
