"""Choice of the backend with its reason, of its threads, and of the image size that a GPU's decoder prepares for."""

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
from shards.images.deep import DECODER
from shards.joined import JoinedSet

log = logging.getLogger("pipelines")

TORCH_PER_CORE = 400
"""Images a second and core of the torch backend: two views of 224 pixels of a photograph of 500 x 375, measured."""
DALI_ON_GPU = 7_000
"""Target of the DALI backend on an H100, in images a second; not measured yet."""

_LAUNCHING = 2  # cores: one for the thread that launches the model's kernels, one for the thread that feeds the backend
_READERS = 4  # enough for 7,000 images a second: reading and checking 256 of them costs 24 ms of one core
_HINTS_FROM = 1024  # images whose sizes are read for the hint
_HINT_BYTES = 1 << 30  # of a GPU's memory, at most


def choose(
    backend: BackendName, device: torch.device, threads: int | None = None, bits: int = 8
) -> tuple[Literal["dali", "torch"], str]:
    """The backend that makes the views, and why.

    Args:
        backend: as of `PipelineOptions.pipeline`.
        device: where the views go.
        threads: that decode; None for the default.
        bits: of the images, 8 or 16.

    Raises:
        PipelineError: DALI is requested and not installed, or does not read images of 16 bits; or the package that
            decodes these is not installed.
    """
    if bits == 16:
        return "torch", _reason_16(backend)
    if backend == "dali":
        if not installed():
            raise PipelineError(f"backend 'dali' needs NVIDIA DALI, which is not installed: {install()}")
        if device.type == "cuda" and (problem := nvjpeg.problem()):
            log.warning("DALI decodes on the CPU: %s", problem)
            return "dali", f"as requested, but it decodes on the CPU: {problem}"
        return "dali", "as requested"
    if backend == "torch":
        return "torch", "as requested"
    if backend == "constant":
        return "torch", "as requested; its one batch was made by the torch backend"
    if device.type != "cuda":
        return "torch", f"the device is {device.type}, where torch decodes and resizes faster than DALI"
    if not installed():
        return "torch", f"NVIDIA DALI is not installed; to decode on the GPU: {install()}"
    if problem := nvjpeg.problem():
        return "torch", f"NVIDIA DALI would decode on the CPU, where torch is faster: {problem}"
    return _faster(threads or default_threads(device))


def _reason_16(backend: BackendName) -> str:
    if backend == "dali":
        raise PipelineError(
            "backend 'dali' does not read images of 16 bits: use --pipeline torch, or auto, which takes it"
        )
    if find_spec(DECODER) is None:
        raise PipelineError(f"images of 16 bits need {DECODER}, which is not installed: pip install 'fastmoco[deep]'")
    return "as requested" if backend == "torch" else "images have 16 bits, which DALI does not read"


def _faster(threads: int) -> tuple[Literal["dali", "torch"], str]:
    """The backend with the higher estimated rate on a CUDA device."""
    rates = (
        f"estimated {threads * TORCH_PER_CORE:,} images/s on {threads} threads of the CPU, {DALI_ON_GPU:,} with DALI "
        "on the GPU (an H100's target, not measured)"
    )
    if threads * TORCH_PER_CORE >= DALI_ON_GPU:
        return "torch", f"{rates}; override with --pipeline dali"
    return "dali", f"{rates}; override with --pipeline torch"


def backend_name(device: torch.device) -> Literal["dali-gpu", "dali-cpu"]:
    """Name of the DALI backend on a device, in logs and results."""
    return "dali-gpu" if device.type == "cuda" else "dali-cpu"


def default_threads(device: torch.device) -> int:
    """One thread for each core of the rank; on CUDA two cores are left to the threads that launch work."""
    cores = cores_of_rank()
    return max(1, cores - _LAUNCHING) if device.type == "cuda" else cores


def reading_threads(backend: Literal["dali", "torch"], device: torch.device, threads: int) -> int:
    """Threads of the pool that reads; few with DALI on a GPU, which decodes on threads of its own."""
    return min(threads, _READERS) if backend == "dali" and device.type == "cuda" else threads


def size_hint(shards: ShardSet | JoinedSet, batch: int) -> tuple[int, int] | None:
    """Height and width for which a GPU's JPEG engine allocates memory at the start: the 95th percentiles of the set.

    Larger images make it allocate more later. None for a remote set, whose index would have to be fetched, and where a
    batch of that size exceeds 1 GiB.
    """
    if shards.remote:
        return None
    ids = np.unique(np.linspace(0, len(shards) - 1, _HINTS_FROM).astype(np.int64))
    height, width = np.ceil(np.percentile(shards.sizes(ids), 95, axis=0)).astype(int).tolist()
    return (height, width) if batch * height * width * 3 <= _HINT_BYTES else None


def installed() -> bool:
    """Whether NVIDIA DALI is installed; does not import it."""
    return find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None


def install() -> str:
    """The command that installs the DALI of torch's CUDA version."""
    major = (torch.version.cuda or "13").split(".")[0]
    return f"pip install 'fastmoco[{'cuda12' if major == '12' else 'cuda13'}]'"
