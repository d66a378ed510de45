"""The kernels' definition in plain torch, for any dtype; for tests and benchmarks, not for training.

N: queries or new keys, K: keys of the dictionary, D: feature dimension, B: images, C: channels.
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
    """Write normalised keys into a ring one by one, each over the oldest (algorithm 1: enqueue, dequeue).

    Returns:
        A new ring [K, D], and the row of the next key.
    """
    ring = queue_KD.clone()
    # one by one, as slow as can be: that is what makes it a definition of the wrap-around
    for key_D in F.normalize(keys_ND, dim=1):
        ring[pointer] = key_D
        pointer = (pointer + 1) % len(ring)
    return ring, pointer


def batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None = None,
    *,
    relu: bool = False,
    groups: int = 1,
    epsilon: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """BatchNorm of [B, C, H, W] by the statistics of each of `groups` consecutive groups, plus a residual, then ReLU.

    Returns:
        The output [B, C, H, W], and mean and unbiased variance [C], each the mean of the groups'.
    """
    x = x.unflatten(0, (groups, -1))
    variance, mean = torch.var_mean(x, (1, 3, 4), correction=0, keepdim=True)
    out = ((x - mean) / (variance + epsilon).sqrt() * weight[:, None, None] + bias[:, None, None]).flatten(0, 1)
    if residual is not None:
        out = out + residual
    count = x[0].numel() // x.shape[2]
    unbiased = variance * count / (count - 1)
    if relu or residual is not None:
        out = out.relu()
    return out, mean.flatten(1).mean(0), unbiased.flatten(1).mean(0)
