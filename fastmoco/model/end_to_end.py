"""The end-to-end mechanism (arXiv 1911.05722, section 3.2 and figure 2a): the batch is its own dictionary.

B: images of a rank, N: images of all ranks, D: feature dimension.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from fastmoco.model.dictionary import Batch, Dictionary


class InBatch(Dictionary):
    """The negatives of a query are the keys of all other images in the global batch. Keys have gradients, too.

    The logits [B, N] are stored: they are no larger than the batch squared.
    """

    def contrast(self, query_BD: torch.Tensor, keys_ND: torch.Tensor, batch: Batch, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Contrast queries with the keys of the global batch; N − 1 are negatives."""
        logits_BN = query_BD @ keys_ND.T / temperature
        target_B = torch.arange(batch.own.start, batch.own.stop, device=logits_BN.device)
        positive_B1 = logits_BN.detach().gather(1, target_B[:, None])
        # at most, since the positive is one of the columns
        hit_B = (logits_BN.detach() <= positive_B1).all(1)
        return F.cross_entropy(logits_BN, target_B, reduction="none"), hit_B
