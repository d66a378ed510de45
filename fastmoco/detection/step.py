"""One step of a detector's training: forward, backward, update."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastmoco.detection.images import Sample
from fastmoco.detection.models import build_detector, normalisation, normalise_by
from fastmoco.detection.settings import DetectSettings
from fastmoco.devices import seed_step, to_device
from fastmoco.ranks.averaging import averaged, settle_buckets
from fastmoco.ranks.world import World


class DetectStep:
    """Detector and optimiser of a transfer, and the step that updates them.

    Args:
        settings: settings of the transfer.
        classes: number of classes, without the background.
        here: this rank.

    Attributes:
        detector: the network, on the rank's device, without any wrapper.
        optimiser: SGD; BatchNorm's weights and biases do not decay, as in detectron2.
        dtype: autocast type, None for float32.
    """

    def __init__(self, settings: DetectSettings, classes: int, here: World) -> None:
        self.settings, self.here = settings, here
        self.dtype = torch.bfloat16 if settings.precision == "bf16" else None
        self.detector = build_detector(settings, classes).to(here.device)
        self.optimiser = _optimiser(self.detector, settings)
        self._network: nn.Module = self.detector

    def begin(self) -> None:
        """Prepare for training: from here on, gradients are averaged over the ranks."""
        # not in __init__: a detector that is only evaluated, with --iterations 0, needs no averaging
        self.detector.train()
        if self.here.size > 1:
            self._network = network = averaged(self.detector, self.here.device)
            settle_buckets(network, self._loss_of_example)

    def __call__(self, batch: list[Sample], step: int) -> dict[str, torch.Tensor]:
        """Run step number `step` on a batch; returns the rank's losses, their sum first, on the device."""
        here, settings = self.here, self.settings
        for group in self.optimiser.param_groups:
            group["lr"] = settings.lr_at(step)
        # torchvision samples regions by torch's global generator; seeded at each step, a resumed run samples the same
        seed_step(settings.seed, step, here.rank)
        images = [as_input(sample, here.device) for sample in batch]
        targets = [{name: to_device(value, here.device) for name, value in sample.target.items()} for sample in batch]
        self.optimiser.zero_grad(set_to_none=True)
        losses = self._losses(images, targets)
        losses["loss"].backward()
        self.optimiser.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def _losses(self, images: list[torch.Tensor], targets: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The sum of the losses, `loss`, then each by its name."""
        with torch.autocast(self.here.device.type, self.dtype, enabled=self.dtype is not None):
            losses = self._network(images, targets)
        # in float32 also under autocast: in bf16 a sum of losses keeps two to three digits
        return {"loss": torch.stack([loss.float() for loss in losses.values()]).sum(), **losses}

    def _loss_of_example(self) -> torch.Tensor:
        """Of two blank images with an object each: BatchNorm on their regions needs two values at least."""
        side, device = 64, self.here.device
        target = {
            "boxes": torch.tensor([[8.0, 8.0, 56.0, 56.0]], device=device),
            "labels": torch.ones(1, dtype=torch.int64, device=device),
            "masks": torch.ones(1, side, side, dtype=torch.uint8, device=device),
        }
        images = [torch.zeros(3, side, side, device=device) for _ in range(2)]
        return self._losses(images, [target, target])["loss"]

    def state(self) -> dict[str, Any]:
        """All that later steps depend on, besides their number."""
        return {
            "model": self.detector.state_dict(), "optimiser": self.optimiser.state_dict(),
            "normalisation": normalisation(self.detector),
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        """Load what `state` returned."""
        self.detector.load_state_dict(state["model"])
        if "normalisation" in state:  # earlier versions had the architecture's
            normalise_by(self.detector, **state["normalisation"])
        self.optimiser.load_state_dict(state["optimiser"])


def as_input(sample: Sample, device: torch.device) -> torch.Tensor:
    """The image as float32[3, H, W] in 0..1 on the device."""
    return to_device(sample.image, device).float().div_(255)


def _optimiser(detector: nn.Module, settings: DetectSettings) -> torch.optim.SGD:
    # detectron2's WEIGHT_DECAY_NORM is 0
    norms = {
        parameter
        for module in detector.modules()
        if isinstance(module, nn.BatchNorm2d)
        for parameter in module.parameters(recurse=False)
    }
    others = [parameter for parameter in detector.parameters() if parameter not in norms]
    kept = [parameter for parameter in detector.parameters() if parameter in norms]
    groups = [{"params": others, "weight_decay": settings.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
