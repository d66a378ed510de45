"""A MoCo training step as in the paper (arXiv 1911.05722, algorithm 1), for comparison.

float32, images and weights as NCHW, the queue stored as [D, K] and copied for the product, all logits in one tensor,
the key encoder updated parameter by parameter.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from fastmoco.config import Config
from fastmoco.model.encoders import Encoder


class OriginalStep:
    """Forward, backward and update of the original formulation on one device.

    Args:
        config: settings; arch, head, feature_dim, queue_size, temperature, momentum_key, momentum and weight_decay
            are used.
        device: device to run on.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.query_encoder = Encoder(config.arch, config.head, config.feature_dim).to(device).train()
        self.key_encoder: nn.Module = copy.deepcopy(self.query_encoder).requires_grad_(False)
        self.queue_DK = F.normalize(torch.randn(config.feature_dim, config.queue_size, device=device), dim=0)
        self.pointer = 0
        # the paper's rate for 256 images (section 4), whatever the batch: only the first loss is compared, and the rate
        # does not change the time of an update
        self.optimiser = torch.optim.SGD(
            self.query_encoder.parameters(), lr=0.03, momentum=config.momentum, weight_decay=config.weight_decay
        )

    def __call__(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Take one step on views [N, 3, H, W] and return the loss; N must divide the queue size, as in the original."""
        query_ND = F.normalize(self.query_encoder(query), dim=1)
        with torch.no_grad():
            m = self.config.momentum_key
            for ours, theirs in zip(self.query_encoder.parameters(), self.key_encoder.parameters(), strict=True):
                # a new tensor for each parameter, as in the original; fastmoco updates all of them in place and
                # together
                theirs.data = theirs.data * m + ours.data * (1 - m)
            key_ND = F.normalize(self.key_encoder(key), dim=1)
        positive_N1 = torch.einsum("nd,nd->n", query_ND, key_ND)[:, None]
        negative_NK = torch.einsum("nd,dk->nk", query_ND, self.queue_DK.clone())
        logits = torch.cat([positive_N1, negative_NK], dim=1) / self.config.temperature
        loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.queue_DK[:, self.pointer : self.pointer + len(key_ND)] = key_ND.T
        self.pointer = (self.pointer + len(key_ND)) % self.config.queue_size
        return loss.detach()
