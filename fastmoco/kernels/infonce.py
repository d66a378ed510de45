"""InfoNCE over a long dictionary without its logits ever being in memory.

The dictionary is walked in chunks with an online log-sum-exp. The gradient for the query is a softmax-weighted
mean of the keys, so it is accumulated in the same walk: backward is one multiplication, nothing but [N, D] is
kept, and the dictionary may be overwritten before backward.

N: queries, K: negatives, D: feature dimension.
"""

from __future__ import annotations

import torch

CHUNK = 4096
"""Negatives in a chunk: N × CHUNK logits exist at a time."""


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query_ND, key_ND, negatives_KD, temperature, chunk):
        positive_N = (query_ND * key_ND).sum(1) / temperature
        largest_N = positive_N.clone()
        total_N = torch.ones_like(positive_N)
        weighted_ND = key_ND.clone()
        hardest_N = torch.full_like(positive_N, -torch.inf)
        for part_CD in negatives_KD.split(chunk):
            part_CD = part_CD.to(query_ND.dtype)
            logits_NC = (query_ND @ part_CD.T).div_(temperature)
            chunk_max_N = logits_NC.amax(1)
            hardest_N = torch.maximum(hardest_N, chunk_max_N)
            new_largest_N = torch.maximum(largest_N, chunk_max_N)
            rescale_N = (largest_N - new_largest_N).exp_()
            weights_NC = logits_NC.sub_(new_largest_N[:, None]).exp_()
            total_N = total_N * rescale_N + weights_NC.sum(1)
            weighted_ND.mul_(rescale_N[:, None]).addmm_(weights_NC, part_CD)
            largest_N = new_largest_N
        loss_N = largest_N + total_N.log() - positive_N
        ctx.save_for_backward(weighted_ND.div_(total_N[:, None]).sub_(key_ND).div_(temperature))
        hit_N = positive_N >= hardest_N
        ctx.mark_non_differentiable(hit_N)
        return loss_N, hit_N

    @staticmethod
    def backward(ctx, grad_loss_N, _grad_hit):
        (slope_ND,) = ctx.saved_tensors
        return slope_ND * grad_loss_N[:, None], None, None, None, None


def infonce(
    query_ND: torch.Tensor,
    key_ND: torch.Tensor,
    negatives_KD: torch.Tensor,
    temperature: float,
    chunk: int = CHUNK,
) -> tuple[torch.Tensor, torch.Tensor]:
    """InfoNCE (arXiv 1911.05722, equation 1), with a gradient for the query only.

    Args:
        query_ND: queries [N, D], unit length.
        key_ND: their positive keys [N, D], of the same dtype; no gradient.
        negatives_KD: the dictionary [K, D], of any float dtype; no gradient.
        temperature: τ.
        chunk: negatives taken at a time.

    Returns:
        The loss of each query [N], and whether no negative beats its positive, bool [N].

    Raises:
        ValueError: where the shapes do not fit together.
    """
    if query_ND.shape != key_ND.shape or query_ND.shape[1] != negatives_KD.shape[1]:
        shapes = [tuple(t.shape) for t in (query_ND, key_ND, negatives_KD)]
        raise ValueError(f"query, key and negatives have shapes {shapes}; expected [N, D], [N, D] and [K, D]")
    return _InfoNCE.apply(query_ND, key_ND.detach(), negatives_KD.detach(), temperature, chunk)
