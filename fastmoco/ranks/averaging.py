"""Gradients averaged over the ranks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def averaged(module: nn.Module, device: torch.device, **options: Any) -> DistributedDataParallel:
    """A module whose gradients are averaged over the ranks. Buffers stay each rank's own: BatchNorm's are per device.

    Args:
        module: On `device`, equal on all ranks.
        device: Device of this rank.
        options: Further arguments of DistributedDataParallel.
    """
    taken = inspect.signature(DistributedDataParallel).parameters  # torch 2.14 warns about the older name
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in taken else "broadcast_buffers"
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices, **{buffers: False}, **options)


def settle_buckets(module: DistributedDataParallel, loss: Callable[[], torch.Tensor]) -> None:
    """Run two backward passes and discard them, so that all later ones sum gradients in one order.

    Parameters, gradients and buffers are afterwards as before.

    DistributedDataParallel lays out its buckets by the order of the parameters at first, and later once more, by the
    order in which gradients arrived. The layout decides the order in which the ranks' values are added. Without this,
    the first steps after a start round otherwise than the same steps of an uninterrupted run, as soon as there are
    three ranks (the sum of two is the same in either order).

    Args:
        module: Wrapped by `averaged`. This is a collective operation of all ranks.
        loss: Runs `module` on an example and returns a scalar that depends on all its parameters, as in training.
    """
    buffers = list(module.buffers())  # BatchNorm's statistics
    kept = [buffer.clone() for buffer in buffers]
    # with static_graph the first pass counts the gradients, the second records their order, and the forward pass
    # after it lays out the buckets; without static_graph one pass would do
    for _ in range(2):
        loss().backward()
        module.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)
