"""The key encoder with weights in autocast's dtype, rounded all at once."""

from __future__ import annotations

import copy

import torch
from torch import nn

from fastmoco.model.encoders import Encoder


class RoundedEncoder:
    """An encoder without gradients, run with rounded copies of its weights.

    Autocast rounds each weight in a launch of its own, in every step: 57 for the key encoder of a ResNet-50. Here one
    launch rounds them all, to the same bits. Not the query encoder's: the backward pass of such a launch would wait for
    the gradients of all weights, which are averaged over the ranks as they arrive.

    Args:
        encoder: The encoder; its weights are read at each call, its BatchNorm statistics are used and moved.
        dtype: Autocast's dtype.
    """

    def __init__(self, encoder: Encoder, dtype: torch.dtype) -> None:
        self._encoder, self._copy = encoder, copy.deepcopy(encoder)
        self._exact: list[torch.Tensor] = []
        self._rounded: list[torch.Tensor] = []
        for module, copied in zip(encoder.modules(), self._copy.modules(), strict=True):
            copied._buffers = module._buffers
            # autocast leaves BatchNorm's parameters in float32, and derived classes compute with their weights before
            if type(module) not in (nn.Conv2d, nn.Linear):
                copied._parameters = module._parameters
                continue
            for name, weight in module._parameters.items():
                if weight is not None:
                    rounded = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
                    copied._parameters[name] = rounded
                    self._exact.append(weight)
                    self._rounded.append(rounded)

    @torch.no_grad()
    def __call__(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """See `Encoder.forward`; under autocast."""
        if self._copy.training != self._encoder.training:
            self._copy.train(self._encoder.training)
        torch._foreach_copy_(self._rounded, self._exact)
        return self._copy(images_BCHW)
