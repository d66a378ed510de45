"""Loss and queue of one step, as in the papers' code and as in fastmoco."""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional as F

from fastmoco.kernels import infonce
from fastmoco.model.dictionary import Queue


class Contrast(Protocol):
    """A formulation of the loss over queries, their keys and a queue, and of enqueuing the keys."""

    name: str
    stored: torch.dtype

    def step(self, query_ND: torch.Tensor, key_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean loss, and its gradient with respect to the queries [N, D]; enqueues the keys."""
        ...

    def ring(self) -> torch.Tensor:
        """The queue, [K, D]."""
        ...


class Original:
    """The formulation of the paper's code: float32, a cloned queue [D, K], all logits, cross-entropy.

    K must be a multiple of the number of keys, and the host waits for the queue's pointer.
    """

    name = "original"
    stored = torch.float32

    def __init__(self, ring_KD: torch.Tensor, temperature: float) -> None:
        self.temperature = temperature
        self.queue_DK = torch.empty(ring_KD.shape[::-1], device=ring_KD.device).copy_(ring_KD.T)
        self.pointer = torch.zeros(1, dtype=torch.int64, device=ring_KD.device)

    def step(self, query_ND: torch.Tensor, key_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Contrast."""
        query_ND = query_ND.detach().requires_grad_()
        positive_N1 = torch.einsum("nc,nc->n", query_ND, key_ND).unsqueeze(-1)
        # cloned, as in the papers' code: the queue is overwritten below, before the backward pass reads the negatives
        negative_NK = torch.einsum("nc,ck->nk", query_ND, self.queue_DK.clone().detach())
        logits = torch.cat([positive_N1, negative_NK], dim=1)
        logits /= self.temperature
        loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))
        # the host waits here for the device, as in the papers' code
        first, count = int(self.pointer), len(key_ND)
        self.queue_DK[:, first : first + count] = key_ND.T
        self.pointer[0] = (first + count) % self.queue_DK.shape[1]
        loss.backward()
        assert query_ND.grad is not None
        return loss.detach(), query_ND.grad

    def ring(self) -> torch.Tensor:
        """See Contrast."""
        return self.queue_DK.T


class Streaming:
    """fastmoco's formulation: a queue [K, D], processed in tiles."""

    def __init__(self, ring_KD: torch.Tensor, temperature: float, stored: torch.dtype) -> None:
        self.temperature, self.stored = temperature, stored
        self.name = "fastmoco" if stored == torch.float32 else "fastmoco, queue in bfloat16"
        # one row: its random vectors are replaced by the given ones at once
        self.queue = Queue(1, ring_KD.shape[1]).to(ring_KD.device)
        self.queue.queue_KD = ring_KD.to(stored)

    def step(self, query_ND: torch.Tensor, key_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Contrast."""
        query_ND = query_ND.detach().requires_grad_()
        loss = infonce(query_ND, key_ND, self.queue.negatives(), self.temperature)[0].mean()
        self.queue.enqueue(key_ND)
        loss.backward()
        assert query_ND.grad is not None
        return loss.detach(), query_ND.grad

    def ring(self) -> torch.Tensor:
        """See Contrast."""
        return self.queue.queue_KD


WAYS = {
    "original": Original,
    "float32": lambda ring, temperature: Streaming(ring, temperature, torch.float32),
    "bfloat16": lambda ring, temperature: Streaming(ring, temperature, torch.bfloat16),
}
"""The formulations by name: functions of a queue [K, D] and a temperature."""


def unit(rows: int, dim: int, device: torch.device, seed: int) -> torch.Tensor:
    """Random unit vectors [rows, dim], normalised in parts to save memory."""
    vectors = torch.empty(rows, dim, device=device)
    vectors.normal_(generator=torch.Generator(device).manual_seed(seed))
    for part in vectors.split(4096):
        part.copy_(F.normalize(part, dim=1))
    return vectors
