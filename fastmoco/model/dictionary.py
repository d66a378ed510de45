"""The dictionary of keys that queries are contrasted with (arXiv 1911.05722, section 3.2).

K: number of keys, D: feature dimension, B: images of a rank, N: images of one step over all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from fastmoco.kernels import enqueue, infonce


@dataclass(frozen=True)
class Batch:
    """Which images a step contrasts.

    Attributes:
        own: this rank's rows among those of all ranks.
        step: number of the step in the run.
        ids_N: sample ids of all ranks' images on the device, int64; None where the dictionary does not need them.
    """

    own: slice
    step: int
    ids_N: torch.Tensor | None = None


class Dictionary(nn.Module):
    """What the mechanisms of the paper's figure 2 have in common.

    All that a dictionary remembers is in its buffers, which are equal on all ranks.

    Attributes:
        part: its name in a checkpoint; None where it remembers nothing.
        by_sample: whether it needs the images' ids.
    """

    part: ClassVar[str | None] = None
    by_sample: ClassVar[bool] = False

    def contrast(self, query_BD: torch.Tensor, keys_ND: torch.Tensor, batch: Batch, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Contrast a rank's queries with their positives and with negatives.

        Args:
            query_BD: queries of unit length [B, D].
            keys_ND: keys of all ranks of unit length [N, D]; row `batch.own.start + i` belongs to query i.
            batch: which images they are.
            temperature: τ.

        Returns:
            The loss of each query [B], and whether no negative beats its positive, bool [B].
        """
        raise NotImplementedError

    def update(self, keys_ND: torch.Tensor, batch: Batch) -> None:
        """Remember the keys of a step [N, D], or [2N, D] where both views are keys."""

    def fill(self) -> torch.Tensor:
        """Share of the dictionary that holds real features rather than initial noise, a scalar."""
        return torch.ones(())


class Queue(Dictionary):
    """A ring of the newest K keys: the current batch replaces the oldest.

    Any K and any number of new keys are fine: writing wraps around. The pointer lives on the device, so
    that no step waits for the host to learn it.
    """

    part = "queue"

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

    def contrast(self, query_BD: torch.Tensor, keys_ND: torch.Tensor, batch: Batch, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Queries with their keys and those of earlier steps."""
        return infonce(query_BD, keys_ND[batch.own], self.negatives(), temperature)

    def update(self, keys_ND: torch.Tensor, batch: Batch) -> None:
        """Put the keys into the queue."""
        self.enqueue(keys_ND)

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
