"""The weights of an encoder from a file, in whichever layout they are (docs/evaluation.md lists the layouts)."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastmoco.checkpoints import checkpoint
from fastmoco.config import ARCHITECTURES, Config, ConfigError
from fastmoco.layouts.files import LayoutError, read
from fastmoco.layouts.finding import find, flat
from fastmoco.layouts.sound import check_finite
from fastmoco.model.encoders import PREDICTOR, Backbone, backbone, shapes
from shards.words import counted

log = logging.getLogger(__name__)

BACKBONE = "backbone."
"""What the names of the encoder's tensors begin with in a checkpoint of this program, before `head.` and `predictor.`,
the heads."""
OURS = "checkpoint of fastmoco train"
FINETUNED = "fastmoco-finetune/1"
"""Format of the checkpoints of fastmoco finetune: `finetune` (what determines the weights), `arch`, `image_size`,
`classes`, `progress` {step, owed}, `encoder`, `head`, `optimiser`, `scaler`."""


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
    """A ResNet's weights without its head.

    Attributes:
        layout: what the file was recognised as.
        arch: its architecture.
        tensors: parameters and buffers under torchvision's names, exactly those of the architecture, in float32.
        left_out: names of the head's tensors in the file.
        others: names of the file's other tensors, which are not taken either.
        checkpoint: all that the file holds, for a checkpoint of fastmoco train; else None.
        converted: data types other than float32 that the file has its weights in.
        image_size: side of the views that it was trained on; None where the file does not say it.
        head: the classifier of a checkpoint of fastmoco finetune.
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

    def load_into(self, net: Backbone) -> None:
        """Copy the weights into a backbone of the same architecture."""
        net.load_state_dict(self.tensors)

    def encoder(self) -> Backbone:
        """A backbone with these weights, in evaluation mode, channels-last, on the CPU."""
        net = backbone(self.arch)
        self.load_into(net)
        # channels-last as in training: another layout selects other kernels, which round differently
        return net.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def __str__(self) -> str:
        parts = [f"{self.layout}, {self.arch}: {counted(len(self.tensors), 'name')} matched"]
        if self.converted:
            parts.append(f"converted from {', '.join(self.converted)} to float32")
        if self.left_out:
            parts.append(f"left out: {len(self.left_out)} of the head ({_some(self.left_out)})")
        if self.others:
            parts.append(f"not used: {len(self.others)} others ({_some(self.others)})")
        return "; ".join(parts)


def read_encoder(path: Path, arch: str | None = None) -> EncoderWeights:
    """The encoder's weights in a file, checked; what was recognised is logged.

    Args:
        path: a file of weights, or the folder of a run, whose newest checkpoint is read.
        arch: the architecture, one of ARCHITECTURES; None for the file's, recorded or found by its shapes.

    Raises:
        LayoutError: the file cannot be read, holds no ResNet of that architecture or several, or holds weights that
            are not finite.
        CheckpointError: the folder has no checkpoints.
    """
    if arch is not None and arch not in ARCHITECTURES:
        raise LayoutError(f"unknown --arch {arch!r}; known: {', '.join(ARCHITECTURES)}")
    # recognised by its suffix: reading a pickle to find out what it is would run its code
    if path.suffix == ".pkl":
        raise LayoutError(
            f"{path} is a pickle, which may run code when it is read; give the checkpoint or the state dictionary that "
            "it was made from"
        )
    path = checkpoint.newest_of(path)
    weights = _recognised(path, read(path), arch)
    check_finite(path, weights.tensors | (weights.head.tensors if weights.head else {}))
    if os.environ.get("RANK", "0") == "0":
        log.info("%s: %s", path, weights)
    return weights


def encoder_of(state: dict[str, Any]) -> EncoderWeights:
    """The query encoder's weights in a checkpoint of fastmoco train that has been read."""
    named = {name.removeprefix(BACKBONE): value for name, value in state["query_encoder"].items()}
    # a checkpoint of training has channels-last weights; other programs expect torch's default strides
    tensors = {name: value.contiguous() for name, value in named.items() if not name.startswith(("head.", PREDICTOR))}
    left_out = tuple(name for name in named if name not in tensors)
    config = state["config"]
    return EncoderWeights(
        OURS, config["arch"], tensors, left_out, checkpoint=state, image_size=config.get("image_size")
    )


def _finetuned(path: Path, state: dict[str, Any]) -> EncoderWeights:
    """The weights in a checkpoint of fastmoco finetune."""
    missing = [name for name in ("arch", "image_size", "classes", "encoder", "head") if name not in state]
    if missing:
        raise LayoutError(f"{path} lacks {' and '.join(missing)}, which a {FINETUNED} has; give another checkpoint")
    tensors = {name: value.contiguous() for name, value in state["encoder"].items()}
    head = Head({f"fc.{name}": value for name, value in state["head"].items()}, tuple(state["classes"]))
    layout = "checkpoint of fastmoco finetune"
    return EncoderWeights(
        layout, state["arch"], tensors, tuple(head.tensors), image_size=state["image_size"], head=head
    )


def arch_of(path: Path, tensors: Mapping[str, torch.Tensor], arch: str | None, recorded: str | None) -> str:
    """The architecture of an encoder, by its shapes.

    Args:
        path: the file.
        tensors: those of the encoder, under torchvision's names.
        arch: what the user says, or None.
        recorded: what the file says, or None.

    Raises:
        LayoutError: the shapes are of no known architecture, or of another one than `arch` or `recorded`.
    """
    if recorded is not None and recorded not in ARCHITECTURES:
        raise LayoutError(f"{path} has an encoder {recorded!r}; known: {', '.join(ARCHITECTURES)}")
    said = arch or recorded
    wrong: dict[str, list[str]] = {}
    held = None
    # no two of them have the same shapes
    for name in sorted(ARCHITECTURES, key=lambda name: name != said):
        wrong[name] = _differences(tensors, name)
        if not wrong[name]:
            held = name
            break
    if held is None:
        raise LayoutError(f"{path} {_unlike(tensors, wrong, said)}")
    if recorded is not None and held != recorded:
        raise LayoutError(f"{path} does not hold the weights of its arch {recorded}, but those of a {held}")
    if arch is not None and held != arch:
        raise LayoutError(f"{path} holds a {held}, not a {arch}; give --arch {held}")
    return held


def _recognised(path: Path, content: Any, arch: str | None) -> EncoderWeights:
    form = content.get("format") if isinstance(content, dict) else None
    if form == checkpoint.FORMAT:
        missing = [name for name in ("config", "query_encoder") if name not in content]
        if missing:
            raise LayoutError(f"{path} lacks {' and '.join(missing)}, which a {OURS} has; give another checkpoint")
        try:
            Config.check_known(content["config"])  # a setting that is unknown here may change what the weights mean
        except ConfigError as error:
            raise LayoutError(f"{path}: {error}") from error
        weights = encoder_of(content)
        arch_of(path, weights.tensors, arch, weights.arch)
        return _complete(weights)
    if form == FINETUNED:
        weights = _finetuned(path, content)
        arch_of(path, weights.tensors, arch, weights.arch)
        return _complete(weights)
    if str(form).startswith("fastmoco-"):
        raise LayoutError(f"{path} is a checkpoint of the format {form}, which holds no pretrained encoder")
    recorded = content.get("arch") if isinstance(content, dict) else None
    recorded = recorded if isinstance(recorded, str) else None
    if recorded is not None and recorded not in ARCHITECTURES:
        raise LayoutError(f"{path} has an encoder {recorded!r}; known: {', '.join(ARCHITECTURES)}")
    found = find(path, flat(content))
    held = arch_of(path, found.tensors, arch, recorded)
    layout = f"{found.layout} ({found.taken})"
    return _complete(EncoderWeights(layout, held, found.tensors, found.head, found.others))


def _complete(weights: EncoderWeights) -> EncoderWeights:
    """The weights in float32, in the architecture's order, with a counter of batches for each BatchNorm."""
    # files from before torch 0.4.1 have no counters; they matter only to a BatchNorm without momentum
    names = shapes(weights.arch)
    given = {name: weights.tensors.get(name, torch.tensor(0)) for name in names}
    odd = sorted({str(value.dtype) for value in given.values() if _convertible(value)})
    tensors = {name: (value.float() if _convertible(value) else value).contiguous() for name, value in given.items()}
    converted = tuple(name.removeprefix("torch.") for name in odd)
    return replace(weights, tensors=tensors, converted=converted)


def _convertible(value: torch.Tensor) -> bool:
    return value.is_floating_point() and value.dtype != torch.float32


def _differences(tensors: Mapping[str, torch.Tensor], arch: str) -> list[str]:
    """What distinguishes tensors from those of an architecture; counters of batches may be missing."""
    wanted = shapes(arch)
    wrong = [f"{n} is missing" for n in wanted if n not in tensors and not n.endswith("num_batches_tracked")]
    wrong += [f"{name} is unexpected" for name in tensors if name not in wanted]
    return wrong + [
        f"{name} has the shape {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    ]


def _unlike(tensors: Mapping[str, torch.Tensor], wrong: dict[str, list[str]], said: str | None) -> str:
    """Why tensors are of no architecture that is known, from the differences to each."""
    stem = tensors.get("conv1.weight")
    if stem is not None and stem.dim() == 4 and stem.shape[2:] != (7, 7):
        sides = " × ".join(map(str, stem.shape[2:]))
        return f"holds a ResNet whose first convolution is {sides}, not 7 × 7 as those of --arch"
    if "conv1.0.weight" in tensors or any(name.startswith("stem.") for name in tensors):
        return "holds a ResNet with a stem of several convolutions, which those of --arch do not have"
    nearest = said or min(wrong, key=lambda name: len(wrong[name]))
    asked = "is --arch right?" if said else "it is the most similar one of --arch"
    first = "; ".join(wrong[nearest][:3])
    return f"does not hold the weights of a {nearest}: {first}, {len(wrong[nearest])} in all; {asked}"


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
