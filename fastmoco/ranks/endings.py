"""What ended a rank, as an error for the user: torch's own errors are tracebacks."""

from __future__ import annotations

import os
import re
import socket
import subprocess

import torch
import torch.distributed as dist

from shards.errors import UserError
from shards.words import human_bytes

# of the allocators of torch's CPU and of CUDA, of C++, of NCCL, of DALI, and of cuBLAS, cuDNN and their like
_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|std::bad_alloc|cannot allocate memory|_ALLOC_FAILED",
    re.IGNORECASE,
)
# torch's and Triton's errors have CUDA in capital letters, NCCL's have "Cuda failure"
_OF_GPU = re.compile(r"CUDA|CUBLAS|CUDNN|NCCL", re.IGNORECASE)
_ASKED = re.compile(r"(?:[Tt]ried to|Unable to) allocate (\d+ bytes|[\d.]+ \w+)")
_FREE = re.compile(r"total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free")
# of Triton: it finds no compiler, or the compiler ends with an error, of which the command alone is known
_NO_COMPILER = re.compile(r"Failed to find C(\+\+)? compiler|triton/backends/\w+/\w+\.c\b")
# of gloo, whose errors have no type of their own, and of NCCL
_LOST_PEER = re.compile(r"/gloo/|connectFullMesh|ncclRemoteError|remote process exited")


class PeerError(UserError, RuntimeError):
    """Another rank has ended, so this one cannot continue."""

    exit_code = 1
    consequence = True


class OutOfMemoryError(UserError, RuntimeError):
    """The memory of a rank's device or host is full. The message says how much was asked for, and what to do."""

    exit_code = 1
    one_rank = True


class CompilerError(UserError, RuntimeError):
    """Triton cannot build what launches its kernels. The message says what to install."""

    exit_code = 1
    one_rank = True


def of_user(error: BaseException, device: torch.device) -> BaseException:
    """The error to raise for one that ended a rank: it itself, if its message is for the user or it is a defect.

    Args:
        error: What was raised.
        device: Device of this rank.
    """
    if isinstance(error, UserError) or not isinstance(error, (MemoryError, RuntimeError, subprocess.SubprocessError)):
        return error
    text = str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _NO_MEMORY.search(text):
        return OutOfMemoryError(_without_memory(text, device))
    if _NO_COMPILER.search(text):
        return CompilerError(
            f"Triton, whose kernels run on the GPU, cannot compile its launcher on {socket.gethostname()}; install gcc "
            f"and Python's headers (python3-dev), or name another compiler in CC ({text})"
        )
    if isinstance(error, dist.DistNetworkError) or _LOST_PEER.search(text):
        return PeerError(
            "lost the connection to another rank, which has failed, was stopped or does not answer; "
            "fix the error that it printed, here or on its node, and run the same command again"
        )
    return error


def _without_memory(text: str, device: torch.device) -> str:
    """The line for an error of an allocator, whose message is `text`."""
    place = f"rank {os.environ.get('RANK', '0')} on {socket.gethostname()}"
    asked, free = _ASKED.search(text), _FREE.search(text)
    amount = asked[1] if asked else ""
    if amount.endswith(" bytes"):
        amount = human_bytes(int(amount.removesuffix(" bytes")))
    wanted = f": it asked for {amount}" if amount else ""
    # the host's memory may run out beside a GPU as well
    if free or (device.type == "cuda" and _OF_GPU.search(text)):
        state = f" ({free[2]} of {free[1]} are free)" if free else ""
        return (
            f"{device} of {place} is out of memory{wanted}{state}; give a smaller --batch-size, to fastmoco train "
            "--accumulate 2 or more, or more GPUs, and see with nvidia-smi whether other processes use this one"
        )
    return (
        f"{place} is out of memory{wanted}; give a smaller --batch-size or fewer --threads, to fastmoco train "
        "--accumulate 2 or more, or start fewer ranks on this machine"
    )
