"""Assemble a pipeline from a feed, a backend and threads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from pipelines._feed import Feed, SetFeed
from pipelines._loaded import LoadedPipeline
from pipelines._samples import Samples
from pipelines._threads import worker_pool
from pipelines.augmentation import ViewPair, ViewSpec
from pipelines.choice import choose, default_threads, reading_threads, size_hint
from pipelines.constant import ConstantPipeline
from pipelines.contract import TwoViewPipeline
from pipelines.errors import PipelineError
from pipelines.options import PipelineOptions
from pipelines.order.epoch import EpochOrder
from pipelines.order.policy import epoch_orders
from pipelines.order.stream import TarOrder
from pipelines.quarantine import Bound, Quarantine, Undecodable
from pipelines.streamed import StreamFeed
from pipelines.torch_cpu import TorchBackend
from shards import ShardSet
from shards.joined import JoinedSet, joined, require_channels

log = logging.getLogger("pipelines")

MakeFeed = Callable[[ThreadPoolExecutor, Undecodable], Feed]


def build(
    shards: ShardSet | JoinedSet | Sequence[ShardSet],
    spec: ViewSpec | ViewPair,
    options: PipelineOptions | None = None,
    *,
    global_batch: int,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    quarantine: Path | None = None,
) -> TwoViewPipeline:
    """Build the pipeline of one rank.

    Args:
        shards: the packed set, or several, whose weights are in the options; the ids of a batch are those of the first
            set, then those of the next one, and so on.
        spec: the augmentation, or one for each view.
        options: see `PipelineOptions`; None for the defaults. The pipeline's ``backend`` and ``reason`` name the
            backend that was chosen and why.
        global_batch: images per step over all ranks.
        rank: this rank.
        world_size: number of ranks.
        seed: the run's seed; order and views follow from it.
        device: where the views go.
        dtype: of the views.
        quarantine: file to which replaced images are appended, a JSON line each (`pipelines.quarantine`). Those that
            cannot be decoded are also in `undecodable.jsonl` beside it, and not tried again by a later pipeline.

    Raises:
        PipelineError: the batch does not fit the set or the ranks, the weights do not fit the sets, or as of
            `pipelines.choice.choose`.
        ShardSetError: two of several sets are the same, or images have colours where the views have one channel.
    """
    options, pair = options or PipelineOptions(), ViewPair.of(spec)
    shards = joined(shards)
    require_channels(shards, pair.channels)
    orders = epoch_orders(shards, options, global_batch=global_batch, rank=rank, world_size=world_size, seed=seed)
    orders(0)  # raises its errors before any thread is started

    def feed(pool: ThreadPoolExecutor, undecodable: Undecodable) -> Feed:
        return SetFeed(Samples(shards, pair, seed, pool, undecodable), orders)

    bound = Bound(options.bad_images_of(len(shards)), len(shards), str(shards.path))
    bad = Quarantine(quarantine, shards.digest, rank, bound)
    return _assemble(feed, pair, options, global_batch // world_size, torch.device(device), dtype, bad, shards)


def build_stream(
    tars: Sequence[str],
    spec: ViewSpec | ViewPair,
    options: PipelineOptions | None = None,
    *,
    images_per_epoch: int,
    global_batch: int,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    quarantine: Path | None = None,
) -> TwoViewPipeline:
    """Build the pipeline of one rank from WebDataset tars that are read forwards only (`pipelines.streamed`).

    The arguments are those of `build`, except for these. ``tars`` takes the place of the packed set: paths or URLs, the
    same on every rank (`shards.foreign.streaming.expand`), at least one for each rank. ``images_per_epoch`` counts the
    images of an epoch over all ranks and sets its steps; the tars may hold more or fewer. Of the options,
    ``shuffle_buffer`` replaces those of the order.

    Raises:
        PipelineError: views of one channel, fewer tars than ranks, fewer images than a batch, a batch that the ranks
            cannot share, or as for `build`.
    """
    options, pair = options or PipelineOptions(), ViewPair.of(spec)
    if pair.channels == 1:
        raise PipelineError(
            "mean and std have one value, for views of one channel, and nothing says that all images of a stream are "
            "grey: give three values, or pack the images with fastmoco pack"
        )
    if images_per_epoch < global_batch:
        raise PipelineError(
            f"images_per_epoch={images_per_epoch} does not fill one global batch: use {global_batch} or more"
        )
    # an order over as many ids checks batch and ranks, and counts the steps, by the rules of a packed set
    steps = EpochOrder(images_per_epoch, global_batch, rank, world_size).steps
    tar_order = TarOrder(tars, rank, world_size, seed)
    size, buffer = global_batch // world_size, options.shuffle_buffer

    def feed(pool: ThreadPoolExecutor, undecodable: Undecodable) -> Feed:
        return StreamFeed(tar_order, pair, pool, undecodable, batch=size, steps=steps, buffer=buffer)

    # nothing identifies a stream's images for another run: the tars may have changed
    bound = Bound(options.bad_images_of(images_per_epoch), images_per_epoch, "TARS")
    bad = Quarantine(quarantine, None, rank, bound)
    pipeline = _assemble(feed, pair, options, size, torch.device(device), dtype, bad)
    if rank == 0:
        log.warning(
            "streaming %d tars on %d ranks: images are shuffled within buffers of %d; the order depends on the number "
            "of ranks; a rank whose tars end before the epoch does reads them again; resuming within an epoch reads "
            "it from its beginning; there are no labels",
            *(len(tars), world_size, buffer),
        )
    return pipeline


def _assemble(
    feed: MakeFeed,
    pair: ViewPair,
    options: PipelineOptions,
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
    quarantine: Quarantine,
    shards: ShardSet | JoinedSet | None = None,
) -> TwoViewPipeline:
    """The pipeline over a feed, which `feed` makes from threads and the known bad images; no `shards` for a stream."""
    bits = 8 if shards is None else shards.bits
    chosen, reason = choose(options.pipeline, device, options.threads, bits)
    threads = default_threads(device) if options.threads is None else options.threads
    pool = worker_pool(reading_threads(chosen, device, threads), "pipelines")
    try:
        if chosen == "dali":
            from pipelines.dali import DaliBackend  # here, because DALI may not be installed

            hint = size_hint(shards, batch) if shards is not None and device.type == "cuda" else None
            maker = DaliBackend(pair, batch, device, pool, threads, options.decoder_load, hint)
        else:
            maker = TorchBackend(pair, pool, pinned=device.type == "cuda", coloured=device.type == "cpu" or bits == 16)
        pipeline = LoadedPipeline(
            feed(pool, quarantine.undecodable),
            pair,
            maker,
            pool,
            reason=reason,
            device=device,
            dtype=dtype,
            prefetch=options.prefetch,
            quarantine=quarantine,
        )
    except BaseException:  # nobody else could end the threads of a pipeline that was never built
        pool.shutdown()
        raise
    return ConstantPipeline(pipeline, reason) if options.pipeline == "constant" else pipeline
