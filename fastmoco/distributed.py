"""Ranks and devices: as torchrun describes them, or one process without it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from shards.errors import UserError
from shards.pool import cores
from shards.words import counted

T = TypeVar("T")
ALL_GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
"""Name in torch.distributed of gathering all ranks' tensors into one; torch 2.14 warns about the older one."""


TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others. Rank 0 alone writes checkpoints and computes detection's metrics, which takes
minutes with a slow file system or COCO's set; longer waits are those of a rank that hangs."""


class DeviceError(UserError, RuntimeError):
    """A rank has no device. The message says how many ranks the node can have."""

    one_rank = True


class PeerError(UserError, RuntimeError):
    """Another rank has ended, so this one cannot continue."""

    exit_code = 1
    consequence = True


@dataclass(frozen=True)
class World:
    """Rank of this process, number of ranks, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only one that writes to the run folder."""
        return self.rank == 0

    @property
    def hardware(self) -> str:
        """What the ranks compute on, in words: `2 cores`, `8 × NVIDIA H100`."""
        if self.device.type == "cuda":
            return f"{self.size} × {torch.cuda.get_device_name(self.device)}"
        return counted(cores(), "core")


@contextmanager
def world() -> Iterator[World]:
    """Join the process group that torchrun describes, and leave it at the end.

    Without torchrun, or with one process, there is no group. The backend is NCCL on GPUs and gloo on CPUs. After an
    error the group is aborted and the process must end; its end is what tells the other ranks.

    Raises:
        DeviceError: The node has fewer GPUs than ranks.
        PeerError: Another rank has ended (gloo).
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = _device(local_rank)
    if size == 1:
        yield World(0, 1, device)
        return
    if device.type == "cuda":
        # bound to its device here: without `device_id`, NCCL would guess it at the first collective operation
        dist.init_process_group("nccl", timeout=TIMEOUT, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    group = dist.group.WORLD
    assert group is not None
    try:
        if device.type == "cpu":
            dist.barrier()  # a rank that ends with an error while others connect would hide it behind their tracebacks
        yield World(rank, size, device)
    except BaseException as error:
        # not destroy_process_group: it waits for this rank's collectives, which the others may never join. On NCCL
        # abort ends them; on gloo it does nothing, but the process can end without them
        group.abort()
        if isinstance(error, RuntimeError) and "/gloo/" in str(error):  # gloo's errors have no type of their own
            raise PeerError(
                "lost the connection to another rank, which has failed, was stopped or does not answer; "
                "fix the error that it printed, here or on its node, and run the same command again"
            ) from error
        raise
    dist.destroy_process_group()


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise DeviceError(
            f"local rank {local_rank} has no GPU: this node has {count}; start torchrun with --nproc-per-node {count}"
        )
    device = torch.device("cuda", local_rank)
    # allocations and launches that name no device must not all land on the first one
    torch.cuda.set_device(device)
    return device


def rank_and_size() -> tuple[int, int]:
    """Rank and number of ranks; 0 and 1 without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def from_main(here: World, act: Callable[[], T]) -> T:
    """Run a function on rank 0, and return its result on all ranks, which all call this.

    Args:
        here: This rank.
        act: The function. Its result, or the UserError that it raises, is pickled to the other ranks.

    Raises:
        UserError: On all ranks, where `act` raises one on rank 0.
    """
    outcome: list[Any] = [None, None]
    if here.is_main:
        try:
            outcome[0] = act()
        except UserError as error:
            outcome[1] = error
    if here.size > 1:
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def restarted() -> bool:
    """Whether a launcher starts this process again: torchrun after a failure, or SLURM when it requeues a job."""
    return any(
        os.environ.get(name, "0") not in ("", "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    )


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a CPU tensor to `device`; for a GPU without waiting for the copy."""
    # from pageable memory the host would wait for the copy, non_blocking or not
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> Callable[[], list[float]]:
    """Start to copy numbers to the host; the returned function waits for them alone, not for later work of a GPU."""
    if tensor.device.type != "cuda":
        return tensor.tolist
    pinned = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def values() -> list[float]:
        copied.synchronize()
        return pinned.tolist()

    return values


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


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows):
        gathered = rows.new_empty(dist.get_world_size() * rows.shape[0], *rows.shape[1:])
        getattr(dist, ALL_GATHER)(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx, grad):
        # the loss of every rank depends on these rows, so their gradient is the sum over ranks, not this rank's part
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
        # every rank's loss depends on the sum, so each part's gradient is the sum over ranks; by the same function,
        # which can be differentiated again
        return _SumOverRanks.apply(grad)


def all_gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Concatenate the rows of all ranks in rank order. Every rank must have the same number of rows.

    The gradient of this rank's rows is summed over the losses of all ranks.

    Args:
        rows: [B, ...], the same shape on every rank.

    Returns:
        [world size · B, ...]; without a process group, `rows` itself.
    """
    return _GatherRows.apply(rows) if dist.is_initialized() else rows


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum over the ranks, of tensors of equal shape; gradients are summed over the ranks as well."""
    return _SumOverRanks.apply(values) if dist.is_initialized() else values


def all_gather_uneven(rows: torch.Tensor) -> torch.Tensor:
    """Concatenate the rows of all ranks in rank order. The number of rows may differ between ranks.

    Args:
        rows: [B_r, ...] on rank r; the trailing shape is the same on all ranks.
    """
    if not dist.is_initialized():
        return rows
    counts = all_gather_rows(torch.tensor([[len(rows)]], device=rows.device)).flatten().tolist()
    # gathering into one tensor needs equal shapes
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = all_gather_rows(padded).split(max(counts))
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def broadcast_buffers(module: torch.nn.Module) -> None:
    """Copy rank 0's buffers (BatchNorm's running statistics) to all ranks, so that all evaluate the same model."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast dtype of a precision, None for float32.

    `auto` is bf16 if the hardware has it (GPUs from Ampere on, CPUs with AMX), else fp16 on CUDA and float32 on a CPU.
    """
    if precision != "auto":
        return _AUTOCAST[precision]
    if device.type == "cuda":
        # older GPUs emulate bf16, without tensor cores for it; they have them for fp16
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # there is no public name for this question
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else None
