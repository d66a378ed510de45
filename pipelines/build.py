"""Choose a backend, say why, and put the pipeline together."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

import torch

from pipelines._loaded import LoadedPipeline
from pipelines._threads import default_threads, worker_pool
from pipelines.constant import ConstantPipeline
from pipelines.contract import TwoViewPipeline
from pipelines.errors import PipelineError
from pipelines.order import EpochOrder, Policy, choose_policy
from pipelines.sharded import LANES, WINDOW, ShardedOrder
from pipelines.torch_cpu import TorchBackend
from pipelines.views import ViewSpec
from shards import ShardSet

BackendName = Literal["auto", "dali", "torch", "constant"]


def build(
    shards: ShardSet,
    spec: ViewSpec,
    *,
    backend: BackendName = "auto",
    global_batch: int,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    order: Policy = "auto",
    order_window: int = WINDOW,
    order_lanes: int = LANES,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
    prefetch: int = 2,
    quarantine: Path | None = None,
) -> TwoViewPipeline:
    """Build the pipeline of one rank.

    Args:
        shards: the packed set.
        spec: the augmentation.
        backend: ``auto`` takes DALI on a CUDA device where it is installed and torch otherwise;
            the pipeline's ``backend`` and ``reason`` say what was taken and why.
        global_batch: images a step over all ranks.
        rank: this rank.
        world_size: number of ranks.
        seed: the run's seed; order and views follow from it.
        order: ``global`` shuffles all samples together, ``sharded`` reads shard after shard
            (`pipelines.sharded`), ``auto`` takes `global` up to 16 million samples.
        order_window: samples mixed in a lane of `sharded`.
        order_lanes: lanes of `sharded`.
        device: where the views go.
        dtype: of the views.
        threads: threads that read and decode; None for one a core of this rank.
        prefetch: batches kept ready.
        quarantine: file to which replaced images are appended, a JSON line each.

    Raises:
        PipelineError: the batch does not fit the set or the ranks, the backend or the order is unknown, or DALI is
            asked for and not installed.
    """
    if backend not in get_args(BackendName):
        raise PipelineError(f"backend {backend!r} is unknown: use one of {', '.join(get_args(BackendName))}")
    target = torch.device(device)
    place = (global_batch, rank, world_size, seed)
    orders = epoch_orders(shards, *place, policy=order, window=order_window, lanes=order_lanes)
    orders(0)  # its errors come before any thread is started
    chosen, reason = choose(backend, target)
    threads = default_threads() if threads is None else threads
    pool = worker_pool(threads, "pipelines")
    try:
        if chosen == "dali":
            from pipelines.dali import DaliBackend

            maker = DaliBackend(spec, global_batch // world_size, target, pool, threads)
        else:
            maker = TorchBackend(spec, pool, pinned=target.type == "cuda")
        pipeline = LoadedPipeline(
            shards,
            spec,
            maker,
            pool,
            orders,
            reason=reason,
            device=target,
            dtype=dtype,
            seed=seed,
            prefetch=prefetch,
            quarantine=quarantine,
        )
    except BaseException:
        pool.shutdown()
        raise
    return ConstantPipeline(pipeline, reason) if backend == "constant" else pipeline


def epoch_orders(
    shards: ShardSet,
    global_batch: int,
    rank: int,
    world_size: int,
    seed: int,
    *,
    policy: Policy,
    window: int,
    lanes: int,
) -> Callable[[int], EpochOrder]:
    """What gives one rank's order of an epoch; arguments as of `build`.

    Raises:
        PipelineError: there is no such policy.
    """
    place = (len(shards), global_batch, rank, world_size, seed)
    if choose_policy(policy, len(shards)) == "global":
        return lambda epoch: EpochOrder(*place, epoch)
    return lambda epoch: ShardedOrder(*place, epoch, ends=shards.ends, window=window, lanes=lanes)


def choose(backend: BackendName, device: torch.device) -> tuple[Literal["dali", "torch"], str]:
    """The backend that makes the views, and why.

    Raises:
        PipelineError: DALI is asked for and not installed.
    """
    if backend == "dali":
        if not installed():
            raise PipelineError(f"backend 'dali' needs NVIDIA DALI, which is not installed: {install()}")
        return "dali", "asked for"
    if backend == "torch":
        return "torch", "asked for"
    if backend == "constant":
        return "torch", "asked for; its one batch was made by the torch backend"
    if device.type != "cuda":
        return "torch", f"the device is {device.type}, where torch decodes and resizes faster than DALI"
    if not installed():
        return "torch", f"NVIDIA DALI is not installed; to decode on the GPU: {install()}"
    return "dali", "a CUDA device and NVIDIA DALI are there"


def installed() -> bool:
    """Whether NVIDIA DALI is there; does not import it."""
    return find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None


def install() -> str:
    """The command that installs the DALI of torch's CUDA version."""
    major = (torch.version.cuda or "13").split(".")[0]
    return f"pip install 'fastmoco[{'cuda12' if major == '12' else 'cuda13'}]'"
