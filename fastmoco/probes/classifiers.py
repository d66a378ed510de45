"""Linear classifiers trained on the same features, one for each learning rate.

B: images of a rank's batch, N: of all ranks', D: feature dimension, C: classes, L: learning rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F


class Classifiers:
    """L fully connected layers with the same initial weights, each with its own learning rate.

    They are independent: each ends exactly as it would alone, to the last bit. With several ranks the gradients are
    summed, not averaged, so that ranks may have different numbers of images, or none.

    Args:
        dim: D.
        classes: C.
        rates: the learning rates.
        momentum: of SGD.
        weight_decay: of SGD.
        seed: of the initial weights: normal with a deviation of 0.01, the bias zero, as in the original MoCo's probe.
        device: device of the weights.

    Attributes:
        heads: the classifiers.
        optimiser: SGD with one parameter group for each.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        rates: Sequence[float],
        *,
        momentum: float,
        weight_decay: float,
        seed: int,
        device: torch.device,
    ) -> None:
        # drawn on the CPU, so that the weights do not depend on the device
        first = torch.empty(classes, dim).normal_(0.0, 0.01, generator=torch.Generator().manual_seed(seed))
        self.rates, self.classes = tuple(rates), classes
        # from meta: nn.Linear's own initialisation would take from torch's global generator, and be overwritten
        heads = [nn.Linear(dim, classes, device="meta").to_empty(device=device) for _ in rates]
        with torch.no_grad():
            for head in heads:
                head.weight.copy_(first)
                head.bias.zero_()
        self.heads = nn.ModuleList(heads)
        groups = [{"params": list(head.parameters()), "lr": rate} for head, rate in zip(heads, rates, strict=True)]
        self.optimiser = torch.optim.SGD(groups, momentum=momentum, weight_decay=weight_decay)

    def step(self, features_BD: torch.Tensor, labels_B: torch.Tensor, factor: float, global_batch: int) -> torch.Tensor:
        """Update every classifier by one step of SGD.

        Args:
            features_BD: this rank's share of the batch, float32.
            labels_B: int64.
            factor: factor of the learning rates at this step.
            global_batch: N.

        Returns:
            [L]: this rank's share of the mean cross entropies, on the device; summed over the ranks they are the means.
        """
        self.optimiser.zero_grad(set_to_none=True)
        losses = torch.stack(
            [F.cross_entropy(head(features_BD), labels_B, reduction="sum") / global_batch for head in self.heads]
        )
        # one backward pass for all: no two classifiers share a parameter, so each gets the gradient of its own loss
        losses.sum().backward()
        self._add_up_gradients()
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimiser.step()
        return losses.detach()

    def _add_up_gradients(self) -> None:
        if not dist.is_initialized():
            return
        # a rank without images has gradients of zero, not none, so the list is the same on all ranks
        gradients = [p.grad for p in self.heads.parameters() if p.grad is not None]
        # one message in place of two for each classifier
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    @torch.no_grad()
    def hits(
        self, features_BD: torch.Tensor, labels_B: torch.Tensor, among_P: torch.Tensor | None = None
    ) -> torch.Tensor:
        """int64 [L, 2]: number of images whose label is the first guess, and among the first five.

        Args:
            features_BD: float32.
            labels_B: int64.
            among_P: labels that may be guessed; None for all.
        """
        counts = []
        for head in self.heads:
            scores = head(features_BD)
            if among_P is not None:
                scores = torch.full_like(scores, -torch.inf).index_copy(1, among_P, scores[:, among_P])
            guesses = scores.topk(min(5, self.classes), dim=1).indices
            right = guesses == labels_B[:, None]
            # left on the device: reading a number here would wait for it at each chunk
            counts.append(torch.stack([right[:, 0].sum(), right.sum()]))
        return torch.stack(counts)

    def finite(self) -> list[bool]:
        """For each classifier, whether its weights are all finite."""
        return [all(bool(torch.isfinite(p).all()) for p in head.parameters()) for head in self.heads]

    def state(self) -> dict[str, Any]:
        """Weights and momentum."""
        return {"heads": self.heads.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Load what `state` returned."""
        self.heads.load_state_dict(state["heads"])
        self.optimiser.load_state_dict(state["optimiser"])
