"""Weights of an encoder of colour images for one that takes a single channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from fastmoco.layouts.encoders import BACKBONE, EncoderWeights
from fastmoco.layouts.files import LayoutError
from fastmoco.model.encoders import shapes


def with_channels(path: Path, weights: EncoderWeights, channels: int) -> EncoderWeights:
    """The weights for images of a number of channels.

    Those of the first convolution are summed over the three channels, as timm does. Of an image whose channels are
    equal, the features stay the same if mean and standard deviation are, too, equal in all channels; with ImageNet's
    they change a little.

    Args:
        path: the file that they are from.
        weights: as `read_encoder` returns them.
        channels: 3 or 1.

    Raises:
        LayoutError: the encoder has one channel, and three are wanted.
    """
    if weights.channels == channels:
        return weights
    if channels != 1:
        raise LayoutError(
            f"{path} holds a {weights.arch} of one channel, whose weights do not fit an encoder of three; "
            "give --channels 1"
        )
    colour, grey = (shapes(weights.arch, weights.image_size, each) for each in (3, 1))
    names = {name for name, shape in grey.items() if shape != colour[name]}
    state = weights.checkpoint
    if state is not None:
        inside = {BACKBONE + name for name in names}
        encoders = {name: _summed(state[name], inside) for name in ("query_encoder", "key_encoder") if name in state}
        state = state | encoders
    return replace(weights, tensors=_summed(weights.tensors, names), checkpoint=state, mean=None, std=None)


def _summed(tensors: Mapping[str, torch.Tensor], names: set[str]) -> dict[str, torch.Tensor]:
    """The tensors, those of the names summed over their second dimension: [N, 3, h, w] to [N, 1, h, w]."""
    return {name: value.sum(1, keepdim=True) if name in names else value for name, value in tensors.items()}
