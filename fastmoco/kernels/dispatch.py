"""Which implementation computes the kernels."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import torch

MAX_DIM = 512
"""Largest feature dimension D for which Triton's tiles of the loss fit into registers and shared memory."""


def implementation(queue_KD: torch.Tensor) -> Literal["triton", "torch"]:
    """What computes the loss over a queue [K, D], and the writing into it.

    Triton on CUDA for float32 and bfloat16; torch, by chunks, on a CPU, in float64, for more than MAX_DIM
    dimensions, and where Triton is not installed (it comes with torch on Linux).
    """
    fits = queue_KD.dtype in (torch.float32, torch.bfloat16) and queue_KD.shape[1] <= MAX_DIM
    return "triton" if queue_KD.is_cuda and fits and find_spec("triton") else "torch"
