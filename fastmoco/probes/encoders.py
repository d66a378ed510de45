"""The encoder that is probed: where it comes from, and the proof that a probe left it as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from fastmoco.config import ARCHITECTURES, Config
from fastmoco.layouts.backbones import read_backbone
from fastmoco.layouts.files import LayoutError, read
from fastmoco.model.encoders import Backbone, backbone
from fastmoco.probes.sets import ProbeError
from fastmoco.runs.checkpoint import CheckpointError, load_backbone

UNTRAINED = "untrained"
"""In place of a checkpoint: random weights."""
_IMAGE_SIZE = 224


@dataclass(frozen=True)
class Frozen:
    """An encoder that is not trained any more.

    Attributes:
        encoder: in evaluation mode, without gradients, on the CPU as it is opened.
        name: what the user called it.
        arch: its architecture.
        image_size: side of the images it was trained on, in pixels.
        digest: hash of its parameters and buffers.
    """

    encoder: Backbone
    name: str
    arch: str
    image_size: int
    digest: str


def open_encoder(checkpoint: str | Path, arch: str | None = None, seed: int = 0) -> Frozen:
    """An encoder to probe.

    Args:
        checkpoint: of a training run; or a torchvision state dictionary, which needs `arch`; or `untrained`, random
            weights as training starts with, which needs `arch`.
        arch: the architecture; of a run's checkpoint it is known and need not be given.
        seed: of the random weights.

    Raises:
        ProbeError, CheckpointError, LayoutError: there is no such encoder.
    """
    path, size = Path(checkpoint), _IMAGE_SIZE
    if str(checkpoint) == UNTRAINED:
        encoder = _untrained(arch, seed)
    elif arch is not None and not _is_of_a_run(path):
        encoder = read_backbone(path, arch)
    else:
        encoder, config = _of_a_run(path)
        size = config.image_size
        if arch is not None and arch != config.arch:
            raise ProbeError(f"{path} holds a {config.arch}, not a {arch}; leave out --arch")
        arch = config.arch
    assert arch is not None  # each branch has checked it
    encoder.requires_grad_(False)
    return Frozen(encoder, str(checkpoint), arch, size, digest_of(encoder))


def _of_a_run(path: Path) -> tuple[Backbone, Config]:
    try:
        return load_backbone(path)
    except CheckpointError as error:
        if not path.is_file():
            raise
        raise ProbeError(f"{error}, or --arch with the weights of a torchvision model") from error


def _untrained(arch: str | None, seed: int) -> Backbone:
    if arch is None:
        raise ProbeError("an untrained encoder needs its architecture; add --arch, as --arch resnet50")
    if arch not in ARCHITECTURES:
        raise LayoutError(f"unknown --arch {arch!r}; known: {', '.join(ARCHITECTURES)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return backbone(arch).eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _is_of_a_run(path: Path) -> bool:
    """Whether a file is a checkpoint of a run rather than plain weights."""
    try:
        found = read(path)
    except LayoutError:  # to be said by who reads it in earnest
        return False
    return isinstance(found, dict) and "query_encoder" in found


def digest_of(encoder: nn.Module) -> str:
    """SHA-256 of all parameters and buffers with their names and types, hex."""
    state = hashlib.sha256()
    for name, value in chain(encoder.named_parameters(), encoder.named_buffers()):
        state.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        state.update(value.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


@contextmanager
def unchanged(encoder: nn.Module) -> Iterator[None]:
    """Raise ProbeError where the encoder's parameters or buffers are other ones at the end than at the beginning."""
    before = digest_of(encoder)
    yield
    after = digest_of(encoder)
    if after != before:
        raise ProbeError(
            f"the encoder changed during the probe (its hash was {before[:12]}, now {after[:12]}): the result says "
            "nothing about the encoder as it was"
        )
