"""Whether a run's state is finite: a state with a value that is infinite or not a number must never be saved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch


def first_not_finite(state: Any) -> str | None:
    """The first value in a state that is infinite or not a number.

    Args:
        state: tensors on any device and plain values, in dictionaries, lists and tuples.

    Returns:
        Its name, the keys and positions joined by dots, such as `optimiser.state.0.momentum_buffer`; None where all
        values are finite.
    """
    return next((name for name, value in _leaves(state, ()) if not _is_finite(value)), None)


def largest(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The largest magnitude in each of some floating-point tensors of one device: float64 [T], without waiting for it.

    It is infinite or not a number exactly for tensors with such a value.
    """
    filled = [tensor.detach() for tensor in tensors if tensor.numel()]
    if filled and filled[0].is_cuda:  # one launch for many tensors; on CPUs it is 15 times slower than the other way
        return torch.stack([value.double() for value in torch._foreach_norm(filled, ord=math.inf)])
    # aminmax passes NaN on, and reads a tensor once without a copy: isfinite makes two
    extremes = [torch.stack(_in_order(tensor).aminmax()).abs().amax().double() for tensor in filled]
    return torch.stack(extremes) if extremes else torch.zeros(0, dtype=torch.float64)


def _in_order(tensor: torch.Tensor) -> torch.Tensor:
    """The values of a tensor in the order of its memory: in another one aminmax reads from a copy, 5 times as long."""
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.permute(0, 2, 3, 1) if channels_last else tensor


def floating(state: Any) -> dict[str, torch.Tensor]:
    """The floating-point tensors of a state by their names, as of `first_not_finite`."""
    return {
        name: value
        for name, value in _leaves(state, ())
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    else:
        yield ".".join(path), value
        return
    for name, part in parts:
        yield from _leaves(part, (*path, str(name)))


def _is_finite(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(largest([value])).all())
    return not isinstance(value, float) or math.isfinite(value)
