"""The choice between Triton and torch."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import torch

MAX_DIM = {torch.float32: 128, torch.bfloat16: 256}
"""Largest feature dimension D of each dtype whose tiles fit into the registers; Triton's loss kernel would spill above
it. float64 is for tests: Triton's kernels accumulate in float32."""


def implementation(device: torch.device, dtype: torch.dtype, dim: int) -> Literal["triton", "torch"]:
    """Implementation of the loss over a queue and of the queue's update.

    Triton on NVIDIA GPUs from Ampere on, for float32 and bfloat16. Chunked torch on CPUs and other GPUs, for float64,
    for more dimensions than MAX_DIM, and where Triton is not installed (torch on Linux brings it).

    Args:
        device: The queue's device.
        dtype: The queue's dtype.
        dim: The queue's feature dimension D.
    """
    # Ampere is the first architecture whose tensor cores multiply bfloat16
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return "torch"
    return "triton" if dim <= MAX_DIM.get(dtype, 0) and find_spec("triton") else "torch"
