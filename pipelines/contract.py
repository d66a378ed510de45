"""What a pipeline gives, what a backend has to do for it, and what a bad image is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from pipelines.views import ViewParams


@dataclass(frozen=True)
class TwoViews:
    """Two views of each image of a batch. Nobody writes to its tensors again, however long it is held.

    Attributes:
        query: [B, 3, H, W] with channels-last strides, normalised, on the pipeline's device.
        key: likewise, of the same images.
        ids: int64[B], sample ids, on the CPU.
    """

    query: torch.Tensor
    key: torch.Tensor
    ids: torch.Tensor


class BadImages(Exception):
    """Images of a batch that cannot be decoded.

    Attributes:
        causes: what is wrong with them, by place in the batch.
    """

    def __init__(self, causes: Mapping[int, str]) -> None:
        place, cause = next(iter(causes.items()))
        super().__init__(f"{len(causes)} bad images in the batch; the one at place {place} {cause}")
        self.causes = dict(causes)


class Backend(Protocol):
    """Turns encoded images into views: decode, crop, resize, blur, flip.

    Colours are `pipelines.colour.finish`'s, or done already. One thread submits batches and collects them in the same
    order.

    Attributes:
        name: `dali-gpu`, `dali-cpu` or `torch`.
        depth: batches to keep in the backend at once for full speed.
    """

    name: str
    depth: int

    def submit(self, encoded: Sequence[bytes], sizes: np.ndarray, params: tuple[ViewParams, ViewParams]) -> None:
        """Start a batch.

        Args:
            encoded: B JPEG files.
            sizes: int32[B, 2], the height and width that they must have.
            params: what to do for the query and for the key.
        """
        ...

    def collect(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Two views of each image of the oldest batch; the memory may be used again by the next call.

        Returns:
            Two contiguous uint8[B, S, S, 3] tensors, on the device or in (pinned, for CUDA) host memory; or float32
            where their colours are done, in memory that nobody writes to while they are held.

        Raises:
            BadImages: some images cannot be decoded or have another size. The backend is empty then: batches
                submitted after this one must be submitted again too.
        """
        ...

    def drop(self) -> None:
        """Wait for the submitted batches and discard them."""
        ...

    def close(self) -> None:
        """Release threads and memory."""
        ...


class TwoViewPipeline(Protocol):
    """Batches of two views, prepared in the background; see `pipelines.build`.

    Attributes:
        backend: `dali-gpu`, `dali-cpu`, `torch` or `constant`.
        reason: why that one.
        order: `global`, `sharded` or `stream`.
        steps_per_epoch: batches an epoch, the same on every rank.
        quarantined: images replaced so far in the batches handed out.
    """

    backend: str
    reason: str
    order: str
    steps_per_epoch: int
    quarantined: int

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[TwoViews]:
        """The batches of an epoch from ``start_step`` on.

        Raises:
            PipelineError: no such step in the epoch.
        """
        ...

    def close(self) -> None:
        """Stop the background threads and give memory back; safe to call twice."""
        ...

    def __enter__(self) -> TwoViewPipeline: ...

    def __exit__(self, *exc: object) -> None: ...
