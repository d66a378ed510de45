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


def new_head(dim: int, classes: int, seed: int, device: torch.device) -> nn.Linear:
    """A classifier with new weights: normal with a deviation of 0.01, the bias zero, as in the original MoCo's probe.

    Args:
        dim: D.
        classes: C.
        seed: of the weights.
        device: where they live.
    """
    # from meta: nn.Linear's own initialisation would take from torch's global generator, and be overwritten
    head = nn.Linear(dim, classes, device="meta").to_empty(device=device)
    with torch.no_grad():
        # drawn on the CPU, so that the weights do not depend on the device
        drawn = torch.empty(classes, dim).normal_(0.0, 0.01, generator=torch.Generator().manual_seed(seed))
        head.weight.copy_(drawn)
        head.bias.zero_()
    return head


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
        seed: of the initial weights.
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
        self.rates = tuple(rates)
        heads = [new_head(dim, classes, seed, device) for _ in rates]
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
