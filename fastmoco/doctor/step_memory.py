"""The memory of a training step, counted on fake tensors: nothing is computed, and no memory is taken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastmoco.config import Config
from fastmoco.model.moco import MoCo


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one rank.

    Attributes:
        weights: both encoders with their buffers.
        gradients: of the trained weights.
        momentum: what the optimiser keeps for each weight.
        dictionary: the queue or the memory bank.
        views: of all images of a step.
        activations: what a backward pass reads again, of one micro-batch.
    """

    weights: int
    gradients: int
    momentum: int
    dictionary: int
    views: int
    activations: int

    @property
    def total(self) -> int:
        """All of it at once."""
        return self.weights + self.gradients + self.momentum + self.dictionary + self.views + self.activations

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint."""
        return self.weights + self.momentum + self.dictionary


def step_memory(config: Config, images: int, samples: int, dtype: torch.dtype | None) -> StepMemory:
    """Memory of a step.

    Args:
        config: the settings of the run.
        images: images of one rank.
        samples: images of the set, for the memory bank.
        dtype: of autocast; None for float32.
    """
    # without its exchanges, and with torch's operators: those that fuse or capture have no fake form
    alone = replace(
        config, accumulate=1, batch_norm="plain", compile=False, cuda_graphs=False, batch_norm_kernel="torch",
        # micro-batches have the two views one after the other
        symmetric=config.symmetric and config.accumulate == 1,
    )  # fmt: skip
    part = images // config.accumulate
    counted = max(part, 2)  # one image has no statistics, nor negatives, without those of the other ranks
    with torch.device("meta"):  # encoders of timm compute numbers when they are built, which fake tensors do not have
        model = MoCo(alone, samples)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model.to_empty(device="cpu").train()
        shape = (counted, config.image_size, config.image_size, config.channels)
        views = [torch.empty(shape, dtype=dtype or torch.float32).permute(0, 3, 1, 2) for _ in range(2)]
        own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers(), *views)}
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()._cdata
            if storage not in own:
                kept[storage] = tensor
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype, enabled=dtype is not None),
        ):
            model(*views, torch.arange(counted), 0, config.momentum_key)
        dictionary = _bytes((*model.dictionary.parameters(), *model.dictionary.buffers()))
        trained = _bytes(parameter for parameter in model.parameters() if parameter.requires_grad)
        return StepMemory(
            weights=_bytes((*model.parameters(), *model.buffers())) - dictionary,
            gradients=trained,
            momentum=trained * _slots(config),
            dictionary=dictionary,
            views=_bytes(views) * config.accumulate * part // counted,
            activations=sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) * part // counted,
        )


def _slots(config: Config) -> int:
    """Values that the optimiser keeps for each weight."""
    if config.optimiser == "adamw":
        return 2
    return 1 if config.momentum or config.optimiser == "lars" else 0


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
