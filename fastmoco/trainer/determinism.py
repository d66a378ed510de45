"""--deterministic: only algorithms that give equal bits for equal input."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastmoco.flags import require

WORKSPACES = (":4096:8", ":16:8")
"""Values of CUBLAS_WORKSPACE_CONFIG with which cuBLAS is deterministic and torch lets it run; the first is faster."""


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Use deterministic algorithms of torch, cuDNN and cuBLAS while the context lasts, if `wanted`.

    Enter it before the first operation on a GPU: cuBLAS reads its workspace's size once. The own Triton kernels need
    no choice, since none of them adds floats atomically.

    No operation of a training step is among those that torch refuses in this mode: the encoders pool by a mean, not by
    AdaptiveAvgPool2d; MaxPool2d and cross-entropy over rows, unlike their variants in 3D and over pixels, have
    deterministic kernels; and index_put, index_copy and gather are replaced by slower ones.

    Raises:
        ConfigError: CUBLAS_WORKSPACE_CONFIG has another value than WORKSPACES.
    """
    if not wanted:
        yield
        return
    workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACES[0])
    require(
        workspace in WORKSPACES,
        f"CUBLAS_WORKSPACE_CONFIG is {workspace!r}, with which cuBLAS is not deterministic; "
        f"unset it, set it to {' or '.join(WORKSPACES)}, or leave out --deterministic",
    )
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False  # benchmark picks the fastest algorithm, which may change
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]
