"""Labelled batches read in threads: the part that centre crops and the linear probe's random crops share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import torch

from pipelines._kept import Kept
from pipelines._threads import Prefetcher, spread, worker_pool
from pipelines.augmentation import ViewSpec
from pipelines.centre import CentreParams
from pipelines.choice import backend_name, choose, default_threads, reading_threads, size_hint
from pipelines.contract import LabelledBatch, LabelledViews
from pipelines.deep import check_scaling
from pipelines.errors import PipelineError
from pipelines.options import PipelineOptions
from pipelines.views import ViewParams
from shards import SampleError, ShardSet
from shards.format.scaling import Scaling
from shards.joined import require_channels

log = logging.getLogger("pipelines")

MakeView = Callable[[int, bytes, torch.Tensor], None]
"""Makes one view: the image's place in the batch, its file, and uint8[S, S, C] to write to; with 16 bits
float32, of levels up to 255.

Raises ValueError for a bad image.
"""
Params = Callable[[np.ndarray], ViewParams | CentreParams]
"""Maps a batch's ids, int64[B], to the parameters of its views, by which DALI makes them."""
MakeViews = Callable[[np.ndarray], MakeView]
"""Maps a batch's ids to the function by which the torch backend makes one of its views."""

_AHEAD = 8  # batches whose shards are fetched ahead if the set is remote


class LabelledReader:
    """Reads images with their labels and makes one view of each, in threads and ahead of use.

    Args:
        shards: the set.
        spec: side, mean and standard deviation of the views.
        views: `ONE_VIEW` or `CENTRE` of `pipelines.views`.
        batch: images per batch, at most.
        device: where the images go.
        dtype: of the images.
        options: the backend, its threads and its decoder load; None for the defaults.
        keep_bad: give a bad image to the caller as one, in place of raising PipelineError.
        scaling: of 16-bit values, where it is not to be the set's own.

    Raises:
        ShardSetError: images have colours where the views have one channel.
        PipelineError: as of `pipelines.choice.choose`; or there is a scaling, and the images have 8 bits or the views
            fewer channels than it.

    Attributes:
        size: of the views, in pixels.
        channels: of the views, 3 or 1.
        scaling: by which 16-bit values are scaled; None with 8 bits.
        backend: `dali-gpu`, `dali-cpu` or `torch`.
        reason: why this one was chosen.
    """

    def __init__(
        self,
        shards: ShardSet,
        spec: ViewSpec,
        views: tuple[str, ...],
        batch: int,
        device: torch.device | str,
        dtype: torch.dtype,
        options: PipelineOptions | None,
        keep_bad: bool = False,
        scaling: Scaling | None = None,
    ) -> None:
        require_channels(shards, spec.channels)
        if scaling is not None and shards.bits == 8:
            raise PipelineError(f"scaling is of 16-bit values, and {shards.path} has images of 8 bits: leave it out")
        check_scaling(scaling, spec.channels)
        self.scaling = scaling or shards.scaling
        self.shards, self._spec, self._graph_views, self._batch = shards, spec, views, batch
        self.size, self.channels = spec.image_size, spec.channels
        self._keep_bad, self._named = keep_bad, set[int]()  # ids of bad images that the log has
        self._dtype, self._device, options = dtype, torch.device(device), options or PipelineOptions()
        chosen, self.reason = choose(options.pipeline, self._device, options.threads, shards.bits)
        self.backend = "torch" if chosen == "torch" else backend_name(self._device)
        self._threads = default_threads(self._device) if options.threads is None else options.threads
        self._readers = reading_threads(chosen, self._device, self._threads)
        self._decoder_load = options.decoder_load
        std = torch.tensor(spec.std, device=self._device)
        self._scale, self._shift = 1 / (255 * std), -torch.tensor(spec.mean, device=self._device) / std

    def batches(
        self, steps: range, ids: Callable[[int], np.ndarray], params: Params, views: MakeViews
    ) -> Iterator[LabelledBatch]:
        """The batches of a range of steps; `ids` maps a step to its ids, int64[B]."""
        with ExitStack() as stack:
            pool = stack.enter_context(worker_pool(self._readers, "pipelines-labelled"))
            kept = Kept()
            made = self._made(stack, pool, self._announced(steps, ids), params, views)
            stack.callback(kept.clear)
            ahead = Prefetcher(made, 2, "pipelines-labelled")
            stack.callback(ahead.close)
            stack.push(lambda kind, *_: kind and self.shards.give_up())  # or `close` would wait for a store
            for pixels, chosen, event, bad in ahead:
                if event is not None:
                    torch.cuda.current_stream(self._device).wait_event(event)
                images = self._normalise(pixels)
                if event is not None:
                    kept.keep(torch.cuda.current_stream(self._device).record_event(), pixels)
                yield LabelledBatch(
                    images=images,
                    labels=torch.from_numpy(self.shards.labels(chosen)),
                    ids=torch.from_numpy(chosen),
                    bad=bad,
                )

    def _announced(self, steps: range, ids: Callable[[int], np.ndarray]) -> Iterator[np.ndarray]:
        """The ids of each step; the shards of the next ones are fetched if they are remote."""
        for step in steps:
            coming = [ids(later) for later in range(step, min(step + _AHEAD, steps.stop))]
            self.shards.expect(np.concatenate(coming))
            # a copy, because `ids` may return a part of the caller's array, which the batch's tensor would share
            yield coming[0].copy()

    def _made(
        self, stack: ExitStack, pool: ThreadPoolExecutor, chosen: Iterator[np.ndarray], params: Params, views: MakeViews
    ) -> Generator[LabelledViews, None, None]:
        """The batches of these ids, in order."""

        def by_torch(ids: np.ndarray) -> LabelledViews:
            pixels, bad = self._views(pool, ids, views(ids))
            return pixels, ids, None, bad

        if self.backend == "torch":
            return (by_torch(ids) for ids in chosen)
        from pipelines._labelled_dali import LabelledDali  # here, because DALI may not be installed
        from pipelines.dali import DaliBackend

        hint = size_hint(self.shards, self._batch) if self._device.type == "cuda" else None
        backend = DaliBackend(
            self._spec, self._batch, self._device, pool, self._threads, self._decoder_load, hint, self._graph_views
        )
        stack.callback(backend.close)
        return LabelledDali(self.shards, backend, pool, self._device, params, by_torch).batches(chosen)

    def _views(self, pool: ThreadPoolExecutor, ids: np.ndarray, make: MakeView) -> tuple[torch.Tensor, dict[int, str]]:
        """Levels [B, S, S, C] in host memory, by the torch backend; and why images are bad, by their place."""
        shape = (len(ids), self.size, self.size, self.channels)
        dtype = torch.uint8 if self.scaling is None else torch.float32
        out = torch.empty(shape, dtype=dtype, pin_memory=self._device.type == "cuda")

        def one(slot: int) -> str | None:
            try:
                encoded = self.shards.check(int(ids[slot]))
            except SampleError as error:  # a store out of reach is no image's fault, and raises
                return error.cause
            try:
                make(slot, encoded, out[slot])
            except ValueError as error:
                return str(error)
            return None

        bad = {slot: cause for slot, cause in enumerate(spread(pool, one, len(ids))) if cause is not None}
        for slot, cause in bad.items():
            shard, key = self.shards.locate(int(ids[slot]))
            source = self.shards.source(int(ids[slot]))
            text = f"sample {ids[slot]} ({shard}, key {key}{f': {source}' if source else ''}) {cause}"
            if not self._keep_bad:
                raise PipelineError(text)
            if int(ids[slot]) not in self._named:
                self._named.add(int(ids[slot]))
                log.warning("bad image: %s; it is left out", text)
            out[slot] = 0
        return out, bad

    def _normalise(self, views: torch.Tensor) -> torch.Tensor:
        """Levels [B, H, W, C] to [B, C, H, W] with channels-last strides on the device."""
        # over whole rows of W * C numbers: a broadcast over the last dimension of C is not vectorised
        batch, height, width, channels = views.shape
        rows = views.to(self._device, non_blocking=True).reshape(batch, height, width * channels)
        values = torch.addcmul(self._shift.repeat(width), rows.to(torch.float32), self._scale.repeat(width))
        return values.to(self._dtype).view(batch, height, width, channels).permute(0, 3, 1, 2)
