"""Labelled batches read in threads: the part that centre crops and the linear probe's random crops share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from pipelines._threads import Prefetcher, cores_of_rank, spread, worker_pool
from pipelines.contract import LabelledBatch
from pipelines.errors import PipelineError
from pipelines.views import ViewSpec
from shards import ShardSet

MakeView = Callable[[int, bytes, torch.Tensor], None]
"""Makes one view: the image's place in the batch, its file, and uint8[S, S, 3] to write to.

Raises ValueError for a bad image.
"""

_AHEAD = 8  # batches whose shards are fetched ahead if the set is remote


class LabelledReader:
    """Reads images with their labels and makes one view of each, in threads and ahead of use."""

    def __init__(
        self,
        shards: ShardSet,
        size: int,
        spec: ViewSpec,
        device: torch.device | str,
        dtype: torch.dtype,
        threads: int | None,
    ) -> None:
        self.shards, self.size, self._dtype, self._device = shards, size, dtype, torch.device(device)
        self._threads = cores_of_rank() if threads is None else threads
        std = torch.tensor(spec.std, device=self._device)
        self._scale, self._shift = 1 / (255 * std), -torch.tensor(spec.mean, device=self._device) / std

    def batches(
        self, steps: range, ids: Callable[[int], np.ndarray], views: Callable[[np.ndarray], MakeView]
    ) -> Iterator[LabelledBatch]:
        """The batches of a range of steps.

        Args:
            steps: the steps, in order.
            ids: maps a step to its ids, int64[B].
            views: maps a batch's ids to the function that makes one of its views.
        """
        pool = worker_pool(self._threads, "pipelines-labelled")

        def make(step: int) -> tuple[torch.Tensor, np.ndarray]:
            coming = [ids(later) for later in range(step, min(step + _AHEAD, steps.stop))]
            self.shards.expect(np.concatenate(coming))
            # a copy, because `ids` may return a part of the caller's array, which the batch's tensor would share
            return self._views(pool, coming[0], views(coming[0])), coming[0].copy()

        ahead = Prefetcher(map(make, steps), 2, "pipelines-labelled")
        try:
            for made, chosen in ahead:
                yield LabelledBatch(
                    images=self._normalise(made),
                    labels=torch.from_numpy(self.shards.labels(chosen)),
                    ids=torch.from_numpy(chosen),
                )
        finally:
            ahead.close()
            pool.shutdown()

    def _views(self, pool: ThreadPoolExecutor, ids: np.ndarray, make: MakeView) -> torch.Tensor:
        """uint8[B, S, S, 3]."""
        shape = (len(ids), self.size, self.size, 3)
        out = torch.empty(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")

        def one(slot: int) -> None:
            sample = int(ids[slot])
            try:
                make(slot, self.shards.read(sample), out[slot])
            except ValueError as error:
                shard, key = self.shards.locate(sample)
                raise PipelineError(f"sample {sample} ({shard}, key {key}) {error}") from None

        spread(pool, one, len(ids))
        return out

    def _normalise(self, views: torch.Tensor) -> torch.Tensor:
        """uint8[B, H, W, 3] to [B, 3, H, W] with channels-last strides on the device."""
        # over whole rows of W * 3 numbers: a broadcast over the last dimension of 3 is not vectorised
        batch, height, width, _ = views.shape
        rows = views.to(self._device, non_blocking=True).reshape(batch, height, width * 3)
        values = torch.addcmul(self._shift.repeat(width), rows.to(torch.float32), self._scale.repeat(width))
        return values.to(self._dtype).view(batch, height, width, 3).permute(0, 3, 1, 2)
