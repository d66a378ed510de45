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
    """The images of a step.

    Attributes:
        own: Rows of this rank in the global batch.
        step: Number of the step in the run.
        ids_N: Sample ids of the global batch on the device, int64; None if the dictionary does not need them.
    """

    own: slice
    step: int
    ids_N: torch.Tensor | None = None


class Dictionary(nn.Module):
    """Interface of the mechanisms in figure 2 of the paper.

    A dictionary's whole state is in its buffers, which are equal on all ranks.

    Attributes:
        part: Its name in a checkpoint; None if it has no state.
        by_sample: Whether it needs the images' ids.
    """

    part: ClassVar[str | None] = None
    by_sample: ClassVar[bool] = False

    def contrast(self, query_BD: torch.Tensor, keys_ND: torch.Tensor, batch: Batch, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Contrast a rank's queries with their positives and negatives.

        Args:
            query_BD: Queries of unit length [B, D].
            keys_ND: Keys of all ranks, of unit length [N, D]; row `batch.own.start + i` is the positive of query i.
            batch: The images.
            temperature: τ.

        Returns:
            The loss of each query [B], and whether its positive beats every negative, bool [B].
        """
        raise NotImplementedError

    def update(self, keys_ND: torch.Tensor, batch: Batch) -> None:
        """Store the keys of a step [N, D], or [2N, D] if both views are keys."""

    def fill(self) -> torch.Tensor:
        """Share of the dictionary that holds features rather than initial noise, a scalar."""
        return torch.ones(())


class BatchKeys(Dictionary):
    """The keys of the batch are positives and negatives, without a memory (arXiv 2104.02057, section 3).

    The negatives of a query are the N − 1 keys of the other images. Keys have no gradient, so micro-batches of queries
    can be contrasted one after the other.
    """

    def contrast(self, query_BD: torch.Tensor, keys_ND: torch.Tensor, batch: Batch, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Contrast queries with the keys of the global batch."""
        return infonce(query_BD, keys_ND[batch.own], keys_ND, temperature, own=batch.own.start)


class Queue(Dictionary):
    """A ring of the newest K keys: the keys of a batch replace the oldest.

    K need not be a multiple of the batch, because writing wraps around. The pointer stays on the device: reading it on
    the host would synchronise at every step.
    """

    part = "queue"

    queue_KD: torch.Tensor
    pointer: torch.Tensor
    seen: torch.Tensor
    ticket: torch.Tensor

    def __init__(
        self,
        size: int,
        feature_dim: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Initialise the keys with random unit vectors, as the paper's code does.

        Args:
            size: Number of keys K.
            feature_dim: Dimension D.
            generator: Source of the initial keys; None for the default generator.
            dtype: Dtype of the stored keys, float32 or bfloat16.
        """
        super().__init__()
        # drawn and normalised in float32: the same keys in any dtype, but for rounding
        initial_KD = F.normalize(torch.randn(size, feature_dim, generator=generator), dim=1)
        self.register_buffer("queue_KD", initial_KD.to(dtype))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        # zero between steps, so it is not part of a checkpoint
        self.register_buffer("ticket", torch.zeros((), dtype=torch.int32), persistent=False)

    def contrast(self, query_BD: torch.Tensor, keys_ND: torch.Tensor, batch: Batch, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Contrast queries with their own keys and the queue's."""
        return infonce(query_BD, keys_ND[batch.own], self.negatives(), temperature)

    def update(self, keys_ND: torch.Tensor, batch: Batch) -> None:
        """Write the keys to the queue."""
        self.enqueue(keys_ND)

    def negatives(self) -> torch.Tensor:
        """The keys to contrast with, [K, D]."""
        return self.queue_KD

    @torch.no_grad()
    def enqueue(self, keys_ND: torch.Tensor) -> None:
        """Write keys [N, D] over the oldest and advance the pointer; see `fastmoco.kernels.enqueue`."""
        enqueue(self.queue_KD, self.pointer, self.seen, self.ticket, keys_ND)

    def fill(self) -> torch.Tensor:
        """Share of the queue that holds keys rather than initial noise, a scalar on the device."""
        return (self.seen / self.queue_KD.shape[0]).clamp(max=1.0)
