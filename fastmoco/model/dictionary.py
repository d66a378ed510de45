"""The dictionary of keys that queries are contrasted with (arXiv 1911.05722, section 3.2).

K: number of keys, D: feature dimension, N: keys of one step over all ranks.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Queue(nn.Module):
    """A ring of the newest K keys: the current batch replaces the oldest.

    Any K and any number of new keys are fine: writing wraps around. The pointer lives on the device, so
    that no step waits for the host to learn it.
    """

    queue_KD: torch.Tensor
    pointer: torch.Tensor
    seen: torch.Tensor

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

    def negatives(self) -> torch.Tensor:
        """The keys to contrast with, [K, D]."""
        return self.queue_KD

    @torch.no_grad()
    def enqueue(self, keys_ND: torch.Tensor) -> None:
        """Write keys [N, D] over the oldest ones and advance the pointer.

        Of more than K keys only the newest K remain, where writing all of them in turn would have left them.
        """
        size, count = self.queue_KD.shape[0], keys_ND.shape[0]
        newest = keys_ND[-size:].to(self.queue_KD.dtype)
        offsets = torch.arange(count - newest.shape[0], count, device=self.pointer.device)
        self.queue_KD.index_copy_(0, (self.pointer + offsets) % size, newest)
        self.pointer.add_(count).remainder_(size)
        self.seen.add_(count)

    def fill(self) -> torch.Tensor:
        """Share of the queue that holds real keys rather than initial noise, a scalar on the device."""
        return (self.seen / self.queue_KD.shape[0]).clamp(max=1.0)
