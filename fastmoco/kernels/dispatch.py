"""The choice between Triton and torch."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import torch

MAX_DIM = 256
"""Largest feature dimension D whose tiles fit into the registers; Triton's loss kernel would spill above it."""


def implementation(device: torch.device, dtype: torch.dtype, dim: int) -> Literal["triton", "torch"]:
    """Implementation of the loss over a queue and of the queue's update.

    Triton on NVIDIA GPUs from Ampere on, for float32 and bfloat16. Chunked torch on CPUs and other GPUs, for float64,
    for more than MAX_DIM dimensions, and where Triton is not installed (torch on Linux brings it).

    Args:
        device: The queue's device.
        dtype: The queue's dtype.
        dim: The queue's feature dimension D.
    """
    # Ampere is the first architecture with bfloat16 and TF32 tensor cores; the kernels' tiles are chosen for them
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return "torch"
    # float64 is for tests: Triton's kernels accumulate in float32
    fits = dtype in (torch.float32, torch.bfloat16) and dim <= MAX_DIM
    return "triton" if fits and find_spec("triton") else "torch"
