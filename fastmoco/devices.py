"""Tensors to and from a device, the precision that it computes in, and what it draws in a step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch


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


def resolved(precision: str, device: torch.device) -> str:
    """The name of the precision that `auto` is on a device; any other one unchanged."""
    dtype = autocast_dtype(precision, device)
    return next(name for name, value in _AUTOCAST.items() if value is dtype)


def drop_seed(seed: int, step: int, rank: int) -> int:
    """Seed of torch's generators for what a rank draws at a step: blocks and features that are dropped, and regions."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators by `drop_seed`, so that a resumed run draws what an uninterrupted one does."""
    torch.manual_seed(drop_seed(seed, step, rank))
