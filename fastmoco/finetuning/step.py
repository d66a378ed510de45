"""One step of fine-tuning: forward, backward, update.

B: images of a rank's batch, C: classes, D: feature dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fastmoco.devices import autocast_dtype, to_device
from fastmoco.finetuning.settings import Recipe
from fastmoco.model.encoders import Backbone
from fastmoco.probes.classifiers import new_head
from fastmoco.ranks.averaging import averaged, settle_buckets
from fastmoco.ranks.world import World


class Classifier(nn.Module):
    """An encoder followed by a linear classifier: images [B, 1 or 3, H, W] to scores float32 [B, C]."""

    def __init__(self, encoder: Backbone, head: nn.Linear) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """[B, 1 or 3, H, W] to [B, C]."""
        features_BD = self.encoder(images_BCHW).float()
        with torch.autocast(features_BD.device.type, enabled=False):  # as the probes compute their scores
            return self.head(features_BD)


class FinetuneStep:
    """Network and optimiser of a fine-tuning, and the step that updates them.

    Args:
        encoder: on the rank's device.
        classes: C.
        recipe: how it is trained.
        momentum: of SGD.
        seed: of the classifier's initial weights.
        precision: precision of the encoder's passes: fp32, bf16, fp16, or auto.
        here: this rank.

    Attributes:
        network: encoder and classifier, without any wrapper.
        optimiser: SGD with two parameter groups, the encoder's and the classifier's.
    """

    def __init__(
        self, encoder: Backbone, classes: int, recipe: Recipe, momentum: float, seed: int, precision: str, here: World
    ) -> None:
        self.here, self.recipe = here, recipe
        self._dtype = autocast_dtype(precision, here.device)
        self.network = Classifier(encoder, new_head(encoder.out_dim, classes, seed, here.device))
        groups = [
            {"params": list(self.network.encoder.parameters()), "lr": recipe.lr},
            {"params": list(self.network.head.parameters()), "lr": recipe.head_lr},
        ]
        self.optimiser = torch.optim.SGD(
            groups, momentum=momentum, nesterov=recipe.nesterov, weight_decay=recipe.weight_decay
        )
        self._scaler = torch.amp.GradScaler(here.device.type, enabled=self._dtype is torch.float16)
        self._wrapped: nn.Module = self.network

    def begin(self, image_size: int) -> None:
        """Prepare for training: BatchNorm is in training mode, and gradients are averaged over the ranks.

        Args:
            image_size: side of the images in pixels.
        """
        self.network.train()
        if self.here.size > 1:
            self._wrapped = wrapped = averaged(self.network, self.here.device)
            # as few as BatchNorm accepts; transformers take one size alone
            channels = self.network.encoder.channels
            images = torch.zeros(2, channels, image_size, image_size, device=self.here.device)
            labels = torch.zeros(2, dtype=torch.int64, device=self.here.device)
            settle_buckets(wrapped, lambda: self._loss(images, labels))

    def rates(self, factor: float) -> tuple[float, float]:
        """Learning rates of encoder and classifier."""
        return self.recipe.lr * factor, self.recipe.head_lr * factor

    def __call__(self, images_BCHW: torch.Tensor, labels_B: torch.Tensor, factor: float) -> torch.Tensor:
        """Update the weights.

        Args:
            images_BCHW: this rank's share of the batch, on the device; of the same size on all ranks.
            labels_B: int64.
            factor: factor of the learning rates at this step.

        Returns:
            The mean cross entropy of this rank's images, a scalar on the device.
        """
        for group, rate in zip(self.optimiser.param_groups, self.rates(factor), strict=True):
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        loss = self._loss(images_BCHW, to_device(labels_B, self.here.device))
        self._scaler.scale(loss).backward()
        self._scaler.step(self.optimiser)
        self._scaler.update()
        return loss.detach()

    def _loss(self, images_BCHW: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.here.device.type, self._dtype, enabled=self._dtype is not None):
            scores_BC = self._wrapped(images_BCHW)
        return F.cross_entropy(scores_BC, labels_B)

    def state(self) -> dict[str, Any]:
        """All that later steps depend on, besides their number."""
        return {
            "encoder": self.network.encoder.state_dict(), "head": self.network.head.state_dict(),
            "optimiser": self.optimiser.state_dict(), "scaler": self._scaler.state_dict(),
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        """Load what `state` returned."""
        self.network.encoder.load_state_dict(state["encoder"])
        self.network.head.load_state_dict(state["head"])
        self.optimiser.load_state_dict(state["optimiser"])
        if state["scaler"]:  # empty without fp16, as which a run may continue
            self._scaler.load_state_dict(state["scaler"])
