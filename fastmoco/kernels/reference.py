"""What the kernels must compute, in plain torch, for any dtype; for tests and benchmarks, not for training.

N: queries or new keys, K: keys of the dictionary, D: feature dimension.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def infonce(
    query_ND: torch.Tensor, key_ND: torch.Tensor, negatives_KD: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """InfoNCE with all logits in memory (arXiv 1911.05722, equation 1 and algorithm 1).

    Returns:
        The loss of each query [N], and whether its positive is its largest logit, bool [N].
    """
    positive_N1 = (query_ND * key_ND).sum(1, keepdim=True)
    logits = torch.cat([positive_N1, query_ND @ negatives_KD.T], dim=1) / temperature
    target_N = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    return F.cross_entropy(logits, target_N, reduction="none"), logits.argmax(1) == 0


def enqueue(queue_KD: torch.Tensor, keys_ND: torch.Tensor, pointer: int) -> tuple[torch.Tensor, int]:
    """Unit keys written one after another into a ring, each over the oldest (algorithm 1: enqueue, dequeue).

    Returns:
        A new ring [K, D], and the place that the next key goes to.
    """
    ring = queue_KD.clone()
    for key_D in F.normalize(keys_ND, dim=1):
        ring[pointer] = key_D
        pointer = (pointer + 1) % len(ring)
    return ring, pointer
