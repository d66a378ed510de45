"""Half precision on a CPU that has no arithmetic for it."""

from __future__ import annotations

import logging
import time

import torch
from torch.nn import functional as F

log = logging.getLogger(__name__)

_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def warn_if_slower(precision: str, device: torch.device) -> None:
    """Warn if a CPU computes slower in the given precision than in fp32. It measures for about a tenth of a second.

    Args:
        precision: value of --precision; `auto` and `fp32` are never slower.
        device: where the encoder runs; only CPUs are measured.
    """
    if precision not in _HALVES or device.type != "cpu":
        return
    share = _seconds(None) / _seconds(_HALVES[precision])
    if share < 0.8:  # what is nearer to 1 may be noise
        log.warning(
            "--precision %s: this CPU computes convolutions at %.2g of their speed in fp32 (measured now); "
            "leave it out, or use --precision fp32",
            *(precision, share),
        )


def _seconds(dtype: torch.dtype | None) -> float:
    """Time of a forward and backward pass through a convolution of ResNet-50."""
    images = torch.ones(4, 64, 14, 14).to(memory_format=torch.channels_last)
    weight = torch.ones(64, 64, 3, 3, requires_grad=True)
    fastest = float("inf")
    for _ in range(3):  # the first one prepares the kernels
        begun = time.perf_counter()
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            F.conv2d(images, weight, padding=1).sum().backward()
        fastest = min(fastest, time.perf_counter() - begun)
    return fastest
