"""Choose a backend, say why, and put the pipeline together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

import torch

from pipelines._feed import Feed, SetFeed
from pipelines._loaded import LoadedPipeline
from pipelines._samples import Samples
from pipelines._threads import default_threads, worker_pool
from pipelines.constant import ConstantPipeline
from pipelines.contract import Backend, TwoViewPipeline
from pipelines.errors import PipelineError
from pipelines.order.epoch import EpochOrder, Policy, choose_policy
from pipelines.order.sharded import LANES, WINDOW, ShardedOrder
from pipelines.order.stream import Dealing
from pipelines.streamed import BUFFER, StreamFeed
from pipelines.torch_cpu import TorchBackend
from pipelines.views import ViewSpec
from shards import ShardSet

log = logging.getLogger("pipelines")

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
    decoder_load: float = 0.65,
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
            (`pipelines.order.sharded`), ``auto`` takes `global` up to 16 million samples.
        order_window: samples mixed in a lane of `sharded`.
        order_lanes: lanes of `sharded`.
        device: where the views go.
        dtype: of the views.
        threads: threads that read and decode; None for one a core of this rank.
        prefetch: batches kept ready.
        decoder_load: share of a batch that DALI gives to a GPU's JPEG engine, where it has one; 0 to 1.
        quarantine: file to which replaced images are appended, a JSON line each.

    Raises:
        PipelineError: the batch does not fit the set or the ranks, the backend or the order is unknown, or DALI is
            asked for and not installed.
    """
    place = (global_batch, rank, world_size, seed)
    orders = epoch_orders(shards, *place, policy=order, window=order_window, lanes=order_lanes)
    orders(0)  # its errors come before any thread is started

    def feed(maker: Backend, pool: ThreadPoolExecutor) -> Feed:
        return SetFeed(Samples(shards, spec, seed, pool), maker, orders)

    size = global_batch // world_size
    return _assemble(
        feed, spec, backend, size, torch.device(device), dtype, threads, prefetch, decoder_load, quarantine
    )


def build_stream(
    tars: Sequence[str],
    spec: ViewSpec,
    *,
    images_per_epoch: int,
    backend: BackendName = "auto",
    global_batch: int,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    buffer: int = BUFFER,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
    prefetch: int = 2,
    decoder_load: float = 0.65,
    quarantine: Path | None = None,
) -> TwoViewPipeline:
    """Build the pipeline of one rank from WebDataset tars that are read forwards only (`pipelines.streamed`).

    Args:
        tars: paths or URLs, the same on every rank (`shards.foreign.streaming.expand`); at least one for each rank.
        spec: the augmentation.
        images_per_epoch: images of an epoch over all ranks, which gives its steps; it need not be what the tars hold.
        backend: as of `build`, and so are the arguments that are not named here.
        global_batch: images a step over all ranks.
        rank: this rank.
        world_size: number of ranks.
        seed: the run's seed; the order of tars, the picks from the buffer and the views follow from it.
        buffer: images that a rank draws its batches from; they are held in memory as they are in the tars.
        device: where the views go.
        dtype: of the views.
        threads: threads that check and decode.
        prefetch: batches kept ready.
        decoder_load: share of a batch that DALI gives to a GPU's JPEG engine, where it has one; 0 to 1.
        quarantine: file to which replaced images are appended.

    Raises:
        PipelineError: fewer tars than ranks, fewer images than a batch, a batch that the ranks cannot share, or as of
            `build`.
    """
    if images_per_epoch < global_batch:
        raise PipelineError(
            f"images_per_epoch={images_per_epoch} does not fill one global batch: use {global_batch} or more"
        )
    steps = EpochOrder(images_per_epoch, global_batch, rank, world_size).steps  # its errors are the stream's, too
    if buffer < 1:
        raise PipelineError(f"buffer={buffer} holds no image: use 1 or more")
    dealing = Dealing(tars, rank, world_size, seed)
    size = global_batch // world_size

    def feed(maker: Backend, pool: ThreadPoolExecutor) -> Feed:
        return StreamFeed(dealing, spec, maker, pool, batch=size, steps=steps, buffer=buffer)

    pipeline = _assemble(
        feed, spec, backend, size, torch.device(device), dtype, threads, prefetch, decoder_load, quarantine
    )
    if rank == 0:
        log.warning(
            "streaming %d tars, dealt to %d ranks: images are mixed within buffers of %d; the order depends on the "
            "number of ranks, and a rank whose tars end before the epoch goes through them again; going on within an "
            "epoch reads it again from its beginning; there are no labels",
            *(len(tars), world_size, buffer),
        )
    return pipeline


def _assemble(
    feed: Callable[[Backend, ThreadPoolExecutor], Feed],
    spec: ViewSpec,
    backend: BackendName,
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
    threads: int | None,
    prefetch: int,
    decoder_load: float,
    quarantine: Path | None,
) -> TwoViewPipeline:
    """A pipeline of batches that `feed` makes with a backend and a pool of threads."""
    if backend not in get_args(BackendName):
        raise PipelineError(f"backend {backend!r} is unknown: use one of {', '.join(get_args(BackendName))}")
    chosen, reason = choose(backend, device)
    threads = default_threads() if threads is None else threads
    pool = worker_pool(threads, "pipelines")
    try:
        if chosen == "dali":
            from pipelines.dali import DaliBackend

            maker = DaliBackend(spec, batch, device, pool, threads, decoder_load)
        else:
            maker = TorchBackend(spec, pool, pinned=device.type == "cuda", coloured=device.type == "cpu")
        pipeline = LoadedPipeline(
            feed(maker, pool),
            spec,
            maker,
            pool,
            reason=reason,
            device=device,
            dtype=dtype,
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
