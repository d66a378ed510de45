"""The pipeline that reads images: batches from a feed, their colours, and the background thread."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch

from pipelines._feed import Decoded, Feed, decoded
from pipelines._kept import Kept
from pipelines._samples import Batch
from pipelines._threads import HostMemory, Prefetcher, spread
from pipelines.augmentation import ViewPair, ViewSpec
from pipelines.colour import Colours
from pipelines.contract import Backend, TwoViews
from pipelines.device_colours import DeviceColours
from pipelines.errors import PipelineError
from pipelines.quarantine import Quarantine
from pipelines.views import ViewParams


@dataclass(frozen=True)
class _Made:
    """A batch between the background thread and the consumer."""

    step: int
    batch: Batch
    views: TwoViews
    event: Any  # torch.cuda.Event after which the views are complete; None on a CPU


class LoadedPipeline:
    """A `TwoViewPipeline` over a shard set or a stream of tars, made by `pipelines.build` and `build_stream`.

    Args:
        feed: the source of batches.
        pair: the augmentation of both views.
        backend: makes the views; closed with the pipeline.
        pool: threads that read and, on a CPU, apply the colours; shut down with the pipeline.
        reason: why this backend was chosen.
        device: where the views go.
        dtype: of the views.
        prefetch: batches kept ready.
        quarantine: logs and records replaced images.
    """

    def __init__(
        self,
        feed: Feed,
        pair: ViewPair,
        backend: Backend,
        pool: ThreadPoolExecutor,
        *,
        reason: str,
        device: torch.device,
        dtype: torch.dtype,
        prefetch: int,
        quarantine: Quarantine,
    ) -> None:
        self.backend, self.reason, self.quarantined = backend.name, reason, 0
        self.steps_per_epoch, self.order = feed.steps, feed.order
        self._feed, self._pair, self._maker, self._pool = feed, pair, backend, pool
        self._device, self._dtype, self._prefetch, self._quarantine = device, dtype, prefetch, quarantine
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._on_device = DeviceColours(pair, dtype, device) if device.type != "cpu" else None
        self._kept = Kept()
        self._running: WeakSet[Prefetcher[_Made]] = WeakSet()
        # the next epoch and the prefetcher that makes its first batches: the last batch of an epoch leaves it here
        self._next: tuple[int, Prefetcher[_Made]] | None = None
        self._memory = HostMemory()
        self._closed = False

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[TwoViews]:
        """See `pipelines.contract.TwoViewPipeline.epoch`."""
        if self._closed:
            raise RuntimeError("the pipeline is closed")
        if epoch < 0:
            raise PipelineError(f"epoch {epoch} is negative: epochs count from 0")
        if not 0 <= start_step <= self.steps_per_epoch:
            raise PipelineError(f"start_step {start_step} is outside the epoch's steps 0 to {self.steps_per_epoch}")
        return self._batches(epoch, start_step)

    def close(self) -> None:
        """See `pipelines.contract.TwoViewPipeline.close`."""
        self._closed = True
        self._feed.give_up()
        for running in list(self._running):
            running.close()
        self._kept.clear()
        self._maker.close()
        self._pool.shutdown()

    def __enter__(self) -> LoadedPipeline:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _batches(self, epoch: int, start_step: int) -> Iterator[TwoViews]:
        steps = self.steps_per_epoch
        if start_step == steps:
            return
        waiting, self._next = self._next, None
        if waiting is not None and waiting[0] == epoch and start_step == 0:
            ahead = waiting[1]
        else:
            if waiting is not None:
                waiting[1].close()
            # makes the epoch's batches in the background, and after them the first ones of the next epoch
            ahead = Prefetcher(self._made(epoch, start_step), self._prefetch, "pipelines-batches")
            self._running.add(ahead)
        try:
            for made in ahead:
                # reported on delivery: a batch that was made ahead and never used replaced nothing in the training
                self._quarantine.report(made.batch, epoch, made.step)
                self.quarantined = len(self._quarantine)
                if made.event is not None:
                    current = torch.cuda.current_stream(self._device)
                    current.wait_event(made.event)
                    # allocated on our stream: the allocator must not reuse it while the consumer's stream reads it
                    made.views.query.record_stream(current)
                    made.views.key.record_stream(current)
                last = made.step == steps - 1
                if last:
                    self._next = epoch + 1, ahead
                yield made.views
                del made  # or this frame would keep the batch, and its memory, while the next one is made
                if last:
                    return
        finally:
            if self._next is None or self._next[1] is not ahead:
                self._feed.give_up()
                ahead.close()

    def _made(self, epoch: int, start_step: int) -> Iterator[_Made]:
        """The batches from (epoch, start_step) on; runs in the background thread."""
        stream = nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with (
            # set here, because the modes belong to a thread; a tensor of inference mode could take no part in training
            torch.inference_mode(False),
            torch.no_grad(),
            stream,
            closing(decoded(self._feed, self._maker, epoch, start_step)) as batches,
        ):
            for batch in batches:
                yield self._finished(batch)
                del batch  # or the next batch could not reuse its memory

    def _finished(self, decoded: Decoded) -> _Made:
        batch = decoded.pending.batch
        if self._on_device is not None:
            query, key = (view.to(self._device, non_blocking=True) for view in (decoded.query, decoded.key))
            if query.dtype is torch.float32:  # 16 bits, whose colours are done
                query, key = (view.to(self._dtype).permute(0, 3, 1, 2) for view in (query, key))
            else:
                query, key = self._on_device(query, key, batch.params)
        else:
            query, key = (
                self._colour(view, params, spec)
                for view, params, spec in zip((decoded.query, decoded.key), batch.params, self._pair, strict=True)
            )
        event = None
        if self._stream is not None:
            event = self._stream.record_event()
            self._kept.keep(event, decoded.query, decoded.key)
        return _Made(decoded.pending.step, batch, TwoViews(query, key, torch.from_numpy(batch.ids)), event)

    def _colour(self, views: torch.Tensor, params: ViewParams, spec: ViewSpec) -> torch.Tensor:
        """Colours and normalisation on the CPU, image by image in the pool, unless the backend has applied them."""
        if views.dtype is torch.float32:
            return self._cast(views)
        colours = Colours.of(params, spec, views.shape[1] * views.shape[2])
        out = self._memory.lend(views.shape)
        spread(self._pool, lambda slot: colours.paint(slot, views[slot], out[slot]), len(views))
        return self._cast(out)

    def _cast(self, views: torch.Tensor) -> torch.Tensor:
        """float32[B, S, S, C] in host memory as [B, C, S, S] of the pipeline's type.

        In the pool, whose threads use one core each: a cast in this thread would make OpenMP start a second team of
        threads, and with more threads than cores a model on the CPU sleeps and wakes at each of its loops.
        """
        if self._dtype is torch.float32:
            return views.permute(0, 3, 1, 2)
        out = self._memory.lend(views.shape, self._dtype)
        spread(self._pool, lambda slot: out[slot].copy_(views[slot]), len(views))
        return out.permute(0, 3, 1, 2)
