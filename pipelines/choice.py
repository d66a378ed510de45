"""Which backend makes the views, why, on how many threads, and what the GPU's decoder is told of the images."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Literal

import numpy as np
import torch

from pipelines import nvjpeg
from pipelines._threads import cores_of_rank
from pipelines.errors import PipelineError
from pipelines.options import BackendName
from shards import ShardSet

log = logging.getLogger("pipelines")

TORCH_PER_CORE = 400
"""Images a second and core of the torch backend: two views of 224 pixels of a photograph of 500 x 375, measured."""
DALI_ON_GPU = 7_000
"""Images a second that the DALI backend is built to make on an H100; not measured yet."""

_LAUNCHING = 2  # cores on CUDA for the thread that launches the model's kernels and for the one that feeds the backend
_READERS = 4  # threads that read and check 7,000 encoded images a second, twice over
_HINTS_FROM = 1024  # images whose sizes make the hint
_HINT_BYTES = 1 << 30  # of a GPU's memory, at most


def choose(
    backend: BackendName, device: torch.device, threads: int | None = None
) -> tuple[Literal["dali", "torch"], str]:
    """The backend that makes the views, and why.

    Args:
        backend: as of `PipelineOptions.pipeline`.
        device: where the views go.
        threads: that decode; None for the default.

    Raises:
        PipelineError: DALI is asked for and not installed.
    """
    if backend == "dali":
        if not installed():
            raise PipelineError(f"backend 'dali' needs NVIDIA DALI, which is not installed: {install()}")
        if device.type == "cuda" and (problem := nvjpeg.problem()):
            log.warning("DALI decodes on the CPU: %s", problem)
            return "dali", f"asked for, but it decodes on the CPU: {problem}"
        return "dali", "asked for"
    if backend == "torch":
        return "torch", "asked for"
    if backend == "constant":
        return "torch", "asked for; its one batch was made by the torch backend"
    if device.type != "cuda":
        return "torch", f"the device is {device.type}, where torch decodes and resizes faster than DALI"
    if not installed():
        return "torch", f"NVIDIA DALI is not installed; to decode on the GPU: {install()}"
    if problem := nvjpeg.problem():
        return "torch", f"NVIDIA DALI would decode on the CPU, where torch is faster: {problem}"
    return _faster(threads or default_threads(device))


def _faster(threads: int) -> tuple[Literal["dali", "torch"], str]:
    """The backend that should make more images a second beside a CUDA device."""
    on_cpu = f"{threads} threads should decode {threads * TORCH_PER_CORE:,} images/s"
    on_gpu = f"DALI on the GPU {DALI_ON_GPU:,} (an H100's target, not measured)"
    if threads * TORCH_PER_CORE >= DALI_ON_GPU:
        return "torch", f"{on_cpu} and leave the GPU to the model, {on_gpu}; --pipeline dali decides otherwise"
    return "dali", f"{on_cpu}, {on_gpu}; --pipeline torch decides otherwise"


def default_threads(device: torch.device) -> int:
    """One thread for each core of the rank; on CUDA two cores are left to the threads that launch work."""
    cores = cores_of_rank()
    return max(1, cores - _LAUNCHING) if device.type == "cuda" else cores


def reading_threads(backend: Literal["dali", "torch"], device: torch.device, threads: int) -> int:
    """Threads of the pool that reads: few where all decoding is DALI's, on threads of its own."""
    return min(threads, _READERS) if backend == "dali" and device.type == "cuda" else threads


def size_hint(shards: ShardSet, batch: int) -> tuple[int, int] | None:
    """Height and width that 19 of 20 images do not exceed, for which a GPU's JPEG engine allocates memory at the start.

    A larger image has the memory grow later. None where the index would have to be fetched, or where a batch of that
    size would take more than 1 GiB.
    """
    if shards.remote:
        return None
    ids = np.unique(np.linspace(0, len(shards) - 1, _HINTS_FROM).astype(np.int64))
    height, width = np.ceil(np.percentile(shards.sizes(ids), 95, axis=0)).astype(int).tolist()
    return (height, width) if batch * height * width * 3 <= _HINT_BYTES else None


def installed() -> bool:
    """Whether NVIDIA DALI is there; does not import it."""
    return find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None


def install() -> str:
    """The command that installs the DALI of torch's CUDA version."""
    major = (torch.version.cuda or "13").split(".")[0]
    return f"pip install 'fastmoco[{'cuda12' if major == '12' else 'cuda13'}]'"
