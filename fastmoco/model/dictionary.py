"""The dictionary of keys that queries are contrasted with (arXiv 1911.05722, section 3.2).

K: number of keys, D: feature dimension, N: keys of one step over all ranks.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from fastmoco.kernels import enqueue


class Queue(nn.Module):
    """A ring of the newest K keys: the current batch replaces the oldest.

    Any K and any number of new keys are fine: writing wraps around. The pointer lives on the device, so
    that no step waits for the host to learn it.
    """

    queue_KD: torch.Tensor
    pointer: torch.Tensor
    seen: torch.Tensor
    ticket: torch.Tensor

    def __init__(self, size: int, feature_dim: int, generator: torch.Generator | None = None) -> None:
        """Start with random unit vectors, as the paper does.

        Args:
            size: number of keys K.
            feature_dim: dimension D.
            generator: source of the initial keys; the default generator otherwise.
        """
        super().__init__()
        initial_KD = F.normalize(torch.randn(size, feature_dim, generator=generator), dim=1)
        self.register_buffer("queue_KD", initial_KD)
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("ticket", torch.zeros((), dtype=torch.int32), persistent=False)

    def negatives(self) -> torch.Tensor:
        """The keys to contrast with, [K, D]."""
        return self.queue_KD

    @torch.no_grad()
    def enqueue(self, keys_ND: torch.Tensor) -> None:
        """Write keys [N, D] over the oldest ones and advance the pointer.

        They are normalised and cast on the way. Of more than K keys only the newest K remain, where writing all of
        them in turn would have left them.
        """
        enqueue(self.queue_KD, self.pointer, self.seen, self.ticket, keys_ND)

    def fill(self) -> torch.Tensor:
        """Share of the queue that holds real keys rather than initial noise, a scalar on the device."""
        return (self.seen / self.queue_KD.shape[0]).clamp(max=1.0)
