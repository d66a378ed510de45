"""Whether a training is sound: looked at on the device, without waiting for it, and judged alike by all ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from fastmoco.checkpoints.finite import first_not_finite, largest
from fastmoco.ranks.world import World, from_all
from fastmoco.runs.errors import TrainingError
from fastmoco.trainer.step import TrainStep

LEAST_SCALE = 2.0**-10
"""Least scale of fp16's gradients. It starts at 2¹⁶ and is halved with each step that is skipped because a gradient has
overflowed, so it takes 26 of them in a row. At a scale of 1 a gradient must be above 65,504 to overflow."""


class Unsound(TrainingError):
    """Values that are infinite or not a number, found by all ranks at the same step.

    Attributes:
        step: the number of steps done with which it was found.
        cause: what was found.
    """

    def __init__(self, step: int, cause: str) -> None:
        super().__init__(f"{cause} at step {step}")
        self.step, self.cause = step, cause


def looked_at(train_step: TrainStep) -> dict[str, torch.Tensor]:
    """Scalars for `Window.start_reading`, by which `fault` judges: of the whole state, every rank's own."""
    tensors = train_step.tensors()
    magnitudes = largest(list(tensors.values()))
    # each by its place: the copy of a list of places to a GPU would make the host wait for all that was launched
    variances = [magnitudes[place] for place, name in enumerate(tensors) if name.endswith("running_var")]
    return {
        "spoilt": (~magnitudes.isfinite()).sum(),
        "scale": train_step.scale(),
        # an encoder without BatchNorm has none
        "variance": torch.stack(variances).max() if variances else magnitudes.new_zeros(()),
    }


def fault(figures: Mapping[str, float], scaled: bool) -> str | None:
    """Why the state after some steps is not sound, in words; None where it is.

    Args:
        figures: means over the steps and the ranks, the same on all of them.
        scaled: whether the gradients are scaled, as with fp16.
    """
    if not math.isfinite(figures["loss"]):
        return f"the loss is {figures['loss']}"
    if figures["spoilt"]:
        return "the state is not finite"
    if scaled and not figures["scale"] >= LEAST_SCALE:  # it may not be a number
        return f"fp16's gradients overflow again and again: their scale is {figures['scale']:.2g}"
    # with fp16 such a step is skipped, by design
    return "the gradient is infinite or not a number" if figures["overflowed"] and not scaled else None


def where(train_step: TrainStep, here: World) -> str:
    """Which tensor is not finite, and on which rank, in brackets; empty where all are. All ranks call it."""
    names = from_all(here, first_not_finite(train_step.tensors()))
    found = [f"{name} on rank {rank}" if here.size > 1 else name for rank, name in enumerate(names) if name]
    return f" ({found[0]} has values that are infinite or not a number)" if found else ""
