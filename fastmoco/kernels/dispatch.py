"""Which implementation computes the kernels."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import torch

MAX_DIM = 256
"""Largest feature dimension D for which Triton's tiles of the loss fit into the registers."""


def implementation(device: torch.device, dtype: torch.dtype, dim: int) -> Literal["triton", "torch"]:
    """What computes the loss over a queue, and the writing into it.

    Triton on NVIDIA GPUs since Ampere for float32 and bfloat16; torch, by chunks, on CPUs and other GPUs, in float64,
    for more than MAX_DIM dimensions, and where Triton is not installed (it comes with torch on Linux).

    Args:
        device: where the queue lies.
        dtype: what it is stored in.
        dim: its feature dimension D.
    """
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return "torch"
    fits = dtype in (torch.float32, torch.bfloat16) and dim <= MAX_DIM
    return "triton" if fits and find_spec("triton") else "torch"
