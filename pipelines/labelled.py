"""One centre-cropped view of each image and its label, for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from pipelines._threads import Prefetcher, default_threads, spread, worker_pool
from pipelines.decode import decode
from pipelines.errors import PipelineError
from pipelines.views import ViewSpec
from shards import ShardSet

_AHEAD = 8  # batches whose shards are fetched ahead where the set is remote


@dataclass(frozen=True)
class LabelledBatch:
    """Images and labels.

    Attributes:
        images: [B, 3, H, W] with channels-last strides, normalised, on the device.
        labels: int64[B] on the CPU; -1 where there is none.
        ids: int64[B] on the CPU.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor


class LabelledPipeline:
    """Every sample once, in order of ``ids``: short side resized (antialiased bilinear), centre crop, normalised.

    May be iterated over again and again. Unlike training, evaluation does not replace a bad image: it raises.

    Args:
        shards: the packed set.
        resize: short side after the resize, in pixels.
        crop: side of the centre crop, in pixels, at most ``resize``.
        batch_size: images a batch; the last one may be short.
        device: where the images go.
        dtype: of the images.
        ids: int64[M], the samples to read; None for all.
        threads: threads that read and decode; None for one a core.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        resize: int,
        crop: int,
        batch_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        ids: np.ndarray | None = None,
        threads: int | None = None,
    ) -> None:
        if not 0 < crop <= resize:
            raise PipelineError(f"crop {crop} does not fit a short side of {resize}: use 1 to {resize}")
        if batch_size < 1:
            raise PipelineError(f"batch_size {batch_size} holds no image: use 1 or more")
        self._shards, self._resize, self._crop, self._batch = shards, resize, crop, batch_size
        self._device, self._dtype = torch.device(device), dtype
        self._ids = np.arange(len(shards)) if ids is None else np.asarray(ids, dtype=np.int64)
        self._threads = default_threads() if threads is None else threads
        spec = ViewSpec()
        self._scale = 1 / (255 * torch.tensor(spec.std, device=self._device))
        self._shift = -torch.tensor(spec.mean, device=self._device) / torch.tensor(spec.std, device=self._device)

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self._ids) // self._batch)

    def __iter__(self) -> Iterator[LabelledBatch]:
        pool = worker_pool(self._threads, "pipelines-labelled")
        ahead = Prefetcher(lambda step: self._decode(pool, step), range(len(self)), 2, "pipelines-labelled")
        try:
            for views, ids in ahead:
                yield LabelledBatch(
                    images=self._normalise(views),
                    labels=torch.from_numpy(self._shards.labels(ids)),
                    ids=torch.from_numpy(ids),
                )
        finally:
            ahead.close()
            pool.shutdown()

    def _decode(self, pool: ThreadPoolExecutor, step: int) -> tuple[torch.Tensor, np.ndarray]:
        """(uint8[B, crop, crop, 3], int64[B])."""
        ids = self._ids[step * self._batch : (step + 1) * self._batch]
        self._shards.expect(self._ids[step * self._batch : (step + _AHEAD) * self._batch])
        shape = (len(ids), self._crop, self._crop, 3)
        out = torch.empty(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")

        def one(slot: int) -> None:
            sample = int(ids[slot])
            try:
                image = torch.from_numpy(decode(self._shards.read(sample))).permute(2, 0, 1)
            except ValueError as error:
                shard, key = self._shards.locate(sample)
                raise PipelineError(f"sample {sample} ({shard}, key {key}) {error}") from None
            out[slot].copy_(centre_view(image, self._resize, self._crop).permute(1, 2, 0))

        spread(pool, one, len(ids))
        return out, ids.copy()

    def _normalise(self, views: torch.Tensor) -> torch.Tensor:
        """uint8[B, H, W, 3] to [B, 3, H, W] with channels-last strides on the device."""
        batch, height, width, _ = views.shape
        rows = views.to(self._device, non_blocking=True).reshape(batch, height, width * 3)
        values = torch.addcmul(self._shift.repeat(width), rows.to(torch.float32), self._scale.repeat(width))
        return values.to(self._dtype).view(batch, height, width, 3).permute(0, 3, 1, 2)


def centre_view(image: torch.Tensor, short_side: int, crop: int) -> torch.Tensor:
    """Resize and centre crop with torchvision's rounding.

    Args:
        image: uint8[3, H, W] with channels-last strides.
        short_side: of the resized image; its long side is cut off to whole pixels.
        crop: side of the crop.

    Returns:
        uint8[3, crop, crop].
    """
    height, width = image.shape[1:]
    if height <= width:
        height, width = short_side, int(short_side * width / height)
    else:
        height, width = int(short_side * height / width), short_side
    image = F.interpolate(image[None], [height, width], mode="bilinear", antialias=True, align_corners=False)[0]
    top, left = round((height - crop) / 2), round((width - crop) / 2)
    return image[:, top : top + crop, left : left + crop]
