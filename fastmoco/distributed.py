"""Processes and devices: what torchrun says, or one process without it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

ALL_GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
"""What torch.distributed calls the gathering of all ranks' tensors into one: 2.14 warns of the older name."""


@dataclass(frozen=True)
class World:
    """This process's place among all: rank, number of ranks, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes to the run folder."""
        return self.rank == 0


@contextmanager
def world() -> Iterator[World]:
    """Join the process group that torchrun describes, and leave it at the end.

    Without torchrun, or with one process, there is no group. NCCL between GPUs, gloo between CPUs.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = _device(local_rank)
    if size == 1:
        yield World(0, 1, device)
        return
    if device.type == "cuda":
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        yield World(rank, size, device)
    finally:
        dist.destroy_process_group()


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise RuntimeError(
            f"local rank {local_rank} has no GPU: this node shows {count}; start with --nproc-per-node {count}"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of ranks; 0 and 1 without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on `device`; the host does not wait for the copy to a GPU."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def averaged(module: nn.Module, device: torch.device, **options: Any) -> DistributedDataParallel:
    """A module whose gradients are averaged over the ranks, while each keeps its own buffers.

    Args:
        module: on `device`, and equal on all ranks.
        device: of this rank.
        options: more of DistributedDataParallel's.
    """
    taken = inspect.signature(DistributedDataParallel).parameters  # torch 2.14 warns of the older name
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in taken else "broadcast_buffers"
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices, **{buffers: False}, **options)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows):
        gathered = rows.new_empty(dist.get_world_size() * rows.shape[0], *rows.shape[1:])
        getattr(dist, ALL_GATHER)(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx, grad):
        parts = list(grad.contiguous().chunk(dist.get_world_size()))
        own = torch.empty_like(parts[0])
        dist.reduce_scatter(own, parts)
        return own


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad):
        return _SumOverRanks.apply(grad)


def all_gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows of all ranks in the order of the ranks, for equal numbers of rows.

    The gradient of this rank's rows is the sum of what all ranks' losses give them.

    Args:
        rows: [B, ...], the same shape on every rank.

    Returns:
        [world size · B, ...]; without a process group, `rows` itself.
    """
    return _GatherRows.apply(rows) if dist.is_initialized() else rows


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sums of the ranks' values, of any equal shape; gradients are summed over the ranks as well."""
    return _SumOverRanks.apply(values) if dist.is_initialized() else values


def all_gather_uneven(rows: torch.Tensor) -> torch.Tensor:
    """Rows of all ranks in the order of the ranks; their number may differ from rank to rank.

    Args:
        rows: [B_r, ...] on rank r; the trailing shape is the same everywhere.
    """
    if not dist.is_initialized():
        return rows
    counts = all_gather_rows(torch.tensor([[len(rows)]], device=rows.device)).flatten().tolist()
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = all_gather_rows(padded).split(max(counts))
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def broadcast_buffers(module: torch.nn.Module) -> None:
    """Give every rank rank 0's buffers (BatchNorm's running statistics), so that all evaluate the same model."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type that encoders compute in, None for float32.

    `auto` is bf16 where the hardware computes in it (Ampere and later; CPUs with AMX), else fp16 on CUDA and
    float32 on the CPU.
    """
    if precision != "auto":
        return _AUTOCAST[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else None
