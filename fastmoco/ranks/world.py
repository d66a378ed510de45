"""Ranks and devices: as torchrun describes them, or one process without it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from fastmoco.ranks.endings import of_user
from fastmoco.ranks.heartbeat import Heartbeat, beating
from fastmoco.ranks.joining import launched, meet
from shards.errors import UserError
from shards.pool import cores
from shards.words import counted

T = TypeVar("T")
TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others. Rank 0 alone writes checkpoints and computes detection's metrics, which takes
minutes with a slow file system or COCO's set; longer waits are those of a rank that hangs."""
TIMED_OUT = "Timed out waiting"  # of gloo, whose errors have no type of their own


class DeviceError(UserError, RuntimeError):
    """A rank has no device. The message says how many ranks the node can have."""

    one_rank = True


@dataclass(frozen=True)
class World:
    """Rank of this process, number of ranks, and its device."""

    rank: int
    size: int
    device: torch.device
    timeout: timedelta = TIMEOUT
    """How long this rank waits for another."""
    heartbeat: Heartbeat | None = field(default=None, compare=False)
    """None for a single process."""

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
def world(timeout: timedelta = TIMEOUT) -> Iterator[World]:
    """Join the process group that torchrun describes, and leave it at the end.

    Without torchrun, or with one process, there is no group. The backend is NCCL on GPUs and gloo on CPUs. After an
    error the group is aborted and the process must end; its end is what tells the other ranks.

    Args:
        timeout: How long a rank waits for another.

    Raises:
        LaunchError: The environment describes ranks that no launcher started.
        DeviceError: The node has fewer GPUs than ranks.
        PeerError: Another rank has ended.
        StalledError: Another rank did not come in time (gloo).
        OutOfMemoryError: The memory of this rank's device or host is full.
    """
    rank, size, local_rank = launched()
    device = _device(local_rank)
    heartbeat: Heartbeat | None = None
    try:
        if size == 1:
            yield World(0, 1, device)
            return
        store = _join(rank, size, device, timeout)
        with beating(store, rank, size, timeout) as heartbeat:
            yield World(rank, size, device, timeout, heartbeat)
    except BaseException as error:
        if dist.group.WORLD is not None:
            # not destroy_process_group: it waits for this rank's collectives, which the others may never join. On NCCL
            # abort ends them; on gloo it does nothing, but the process can end without them
            dist.group.WORLD.abort()
        stalled = heartbeat is not None and isinstance(error, RuntimeError) and TIMED_OUT in str(error)
        told = heartbeat.stalled(error) if heartbeat is not None and stalled else of_user(error, device)
        if told is error:
            raise
        raise told from error
    dist.destroy_process_group()


def _join(rank: int, size: int, device: torch.device, timeout: timedelta) -> dist.Store:
    """Join the process group of all ranks; a store that they share."""
    on_gpu, store = device.type == "cuda", meet(rank, size, timeout)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        timeout=timeout,
        world_size=size,
        rank=rank,
        store=store,
        # without it, NCCL would guess the rank's device at the first collective operation
        device_id=device if on_gpu else None,
    )
    if not on_gpu:
        dist.barrier()  # a rank that ends with an error while others connect would hide it behind their tracebacks
    return store


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        has = f"this node has {count}" if visible is None else f"CUDA_VISIBLE_DEVICES is {visible!r}"
        more = "" if visible is None else ", or show the GPUs of all of the node's ranks to each of them"
        raise DeviceError(
            f"local rank {local_rank} has no GPU: {has}; start torchrun with --nproc-per-node {count}{more}"
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


def from_all(here: World, value: T) -> list[T]:
    """A value of each rank, by rank, on all ranks, which all call this.

    Args:
        here: This rank.
        value: Of any kind and size; it is pickled.
    """
    values = [value] * here.size
    if here.size > 1:
        dist.all_gather_object(values, value)
    return values


def restarted() -> bool:
    """Whether a launcher starts this process again: torchrun after a failure, or SLURM when it requeues a job."""
    return any(
        os.environ.get(name, "0") not in ("", "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    )
