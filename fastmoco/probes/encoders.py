"""The encoder to probe: how it is opened, and a check that the probe left it unchanged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from fastmoco.architectures import by_timm, known, names
from fastmoco.channels import check_images
from fastmoco.layouts.encoders import read_encoder
from fastmoco.model.encoders import Backbone, backbone, usual_size
from fastmoco.probes.sets import ProbeError
from fastmoco.probes.settings import UNTRAINED
from fastmoco.views import resize_for
from pipelines.transform import CentreTransform
from shards import ShardSet


@dataclass(frozen=True)
class Frozen:
    """A frozen encoder.

    Attributes:
        encoder: in evaluation mode, without gradients, on the CPU.
        name: as the user gave it.
        arch: its architecture.
        image_size: side of the images that it is given, in pixels: as asked for, or as in training.
        digest: hash of its parameters and buffers, as `digest_of` has it.
    """

    encoder: Backbone
    name: str
    arch: str
    image_size: int
    digest: str

    def check_images(self, *sets: ShardSet) -> None:
        """Raise ConfigError for a set with images in colour if the encoder takes one channel."""
        check_images(self.encoder.channels, f"the encoder {self.name}", *sets)


def open_encoder(
    checkpoint: str | Path, arch: str | None = None, seed: int = 0, image_size: int | None = None
) -> Frozen:
    """An encoder to probe.

    Args:
        checkpoint: a file in any layout of `layouts.encoders`; or `untrained`, random weights as training starts with.
        arch: the architecture; needed for `untrained` and for files that do not record it.
        seed: of the random weights.
        image_size: side of the images that are probed; None for that of training.

    Raises:
        ProbeError, LayoutError: the encoder cannot be opened.
    """
    if str(checkpoint) == UNTRAINED:
        encoder, arch = _untrained(arch, seed, image_size)
        size = None
    else:
        weights = read_encoder(Path(checkpoint), arch, image_size)
        encoder, arch, size = weights.encoder(), weights.arch, weights.image_size
    encoder.requires_grad_(False)
    return Frozen(encoder, str(checkpoint), arch, image_size or size or usual_size(arch), digest_of(encoder))


def _untrained(arch: str | None, seed: int, image_size: int | None) -> tuple[Backbone, str]:
    if arch is None:
        raise ProbeError("an untrained encoder needs its architecture; add --arch, as --arch resnet50")
    if not known(arch):
        raise ProbeError(f"unknown --arch {arch!r}; known: {names()}")
    # seeded as a training is, so these are the weights that a run with this seed starts from. No devices: forking their
    # generators would start CUDA on every GPU
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = backbone(arch, image_size=image_size)
    return encoder.eval().to(memory_format=torch.channels_last), arch  # pyright: ignore[reportCallIssue]


def transform_of(encoder: Backbone, image_size: int, resize: int | None = None) -> CentreTransform:
    """The transform of an encoder's images: resized to a short side (None: for the crop), cropped and normalised.

    That of an encoder of 16-bit images takes such images alone, scaled as those of the training.
    """
    return CentreTransform(
        image_size, resize or resize_for(image_size), encoder.image_mean, encoder.image_std, encoder.image_scaling,
        encoder.image_bits,
    )  # fmt: skip


def digest_of(encoder: nn.Module) -> str:
    """SHA-256 of all parameters and buffers with their names, types and shapes, hex.

    Of an encoder of timm its name counts, too: heads and activations are not in the weights.
    """
    arch = str(getattr(encoder, "arch", ""))  # any module may be given
    # without its tag, which names weights
    state = hashlib.sha256(arch.partition(".")[0].encode() if by_timm(arch) else b"")
    # not state_dict, which leaves out buffers that are not persistent
    for name, value in chain(encoder.named_parameters(), encoder.named_buffers()):
        state.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        state.update(value.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


@contextmanager
def unchanged(encoder: nn.Module) -> Iterator[None]:
    """Raise ProbeError if the encoder's parameters or buffers have changed at the end of the block."""
    # BatchNorm in training mode would move its running statistics without any gradient
    before = digest_of(encoder)
    yield
    after = digest_of(encoder)
    if after != before:
        raise ProbeError(
            f"the encoder changed during the probe (its hash was {before[:12]}, now {after[:12]}); the result is "
            "not that of the encoder as it was"
        )
