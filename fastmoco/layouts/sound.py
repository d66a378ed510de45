"""Refuse weights that are not finite, and name the last checkpoint that is sound."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from fastmoco.checkpoints import checkpoint
from fastmoco.checkpoints.finite import first_not_finite
from fastmoco.layouts.files import LayoutError


def check_finite(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise LayoutError if weights read from a file are not all finite; a run's last sound checkpoint is named."""
    name = first_not_finite(tensors)
    if name is None:
        return
    values = tensors[name]
    bad = values.numel() - int(torch.isfinite(values).sum())
    message = f"{path}: {name} has {bad} of {values.numel()} values that are infinite or not a number"
    # the names of a run's checkpoints are in the order of their steps
    earlier = [other for other in checkpoint.found(path.parent) if other.name < path.name]
    if earlier and path.name.startswith("step-"):
        sound = next((other for other in earlier if _is_sound(other)), None)
        message += f"; {sound} is sound" if sound else "; no checkpoint before it is sound"
    raise LayoutError(message)


def _is_sound(path: Path) -> bool:
    try:
        state = checkpoint.load(path)
    except checkpoint.CheckpointError:
        return False
    return first_not_finite(state["query_encoder"]) is None
