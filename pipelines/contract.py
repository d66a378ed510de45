"""The contracts: what a pipeline delivers, what a backend does for it, and how bad images are reported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from pipelines.views import ViewParams
from shards.format.scaling import Scaling


@dataclass(frozen=True)
class TwoViews:
    """Two views of each image of a batch. Its tensors are never overwritten, however long it is held.

    Attributes:
        query: [B, C, H, W] with channels-last strides, normalised, on the pipeline's device; C is
            `ViewSpec.channels`, 3 or 1.
        key: likewise, of the same images.
        ids: int64[B], their sample ids, on the CPU.
    """

    query: torch.Tensor
    key: torch.Tensor
    ids: torch.Tensor


class BadImages(Exception):
    """Images of a batch that cannot be decoded.

    Attributes:
        causes: why each cannot be used, by place in the batch.
    """

    def __init__(self, causes: Mapping[int, str]) -> None:
        place, cause = next(iter(causes.items()))
        super().__init__(f"{len(causes)} bad images in the batch; the one at place {place} {cause}")
        self.causes = dict(causes)


class Backend(Protocol):
    """Turns encoded images into views: decode, crop, resize, blur, flips and turns.

    The pipeline applies the colours, unless the backend has done so (float32 views). One thread submits batches and
    collects them in the same order.

    Attributes:
        name: `dali-gpu`, `dali-cpu` or `torch`.
        depth: number of batches to keep in the backend for its full speed.
    """

    name: str
    depth: int

    def submit(
        self,
        encoded: Sequence[bytes],
        sizes: np.ndarray,
        params: tuple[ViewParams, ViewParams],
        scalings: Sequence[Scaling] | None = None,
    ) -> None:
        """Start a batch.

        Args:
            encoded: B JPEG files, or PNGs of 16 bits, for which only the torch backend is chosen.
            sizes: int32[B, 2], the height and width that they must have.
            params: the parameters of the query and of the key.
            scalings: with 16 bits, by which the values of each image are scaled.
        """
        ...

    def collect(self) -> tuple[torch.Tensor, ...]:
        """Two views of each image of the oldest batch. The next call may reuse the memory of uint8 views.

        Returns:
            Two contiguous uint8[B, S, S, C] tensors, on the device or in host memory (pinned, for CUDA). Or float32
            views whose colours are done, in memory that is not overwritten while they are held.

        Raises:
            BadImages: some images cannot be decoded or have another size. The backend is then empty: batches submitted
                after this one have to be submitted again as well.
        """
        ...

    def drop(self) -> None:
        """Wait until no submitted batch is being worked on, and discard them all."""
        ...

    def close(self) -> None:
        """Release threads and memory."""
        ...


@dataclass(frozen=True)
class LabelledBatch:
    """Images with their labels.

    Attributes:
        images: [B, C, H, W] with channels-last strides, normalised, on the device.
        labels: int64[B] on the CPU; -1 for an image without a label.
        ids: int64[B] on the CPU.
        bad: why images cannot be used, by their place in the batch; their pixels are black. Empty unless the pipeline
            was asked for them.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    bad: Mapping[int, str] = field(default_factory=dict)


LabelledViews = tuple[torch.Tensor, np.ndarray, Any, Mapping[int, str]]
"""A labelled batch as it is made: uint8[B, S, S, C]; its ids, int64[B]; the torch.cuda.Event after which the views are
complete, None if they are in host memory; and why images cannot be used, by their place."""


class TwoViewPipeline(Protocol):
    """Batches of two views, prepared in the background; see `pipelines.build`.

    Attributes:
        backend: `dali-gpu`, `dali-cpu`, `torch` or `constant`.
        reason: why this one was chosen.
        order: `global`, `sharded` or `stream`.
        steps_per_epoch: batches per epoch, the same on every rank.
        quarantined: distinct bad images that were replaced in the batches delivered so far.
    """

    backend: str
    reason: str
    order: str
    steps_per_epoch: int
    quarantined: int

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[TwoViews]:
        """The batches of an epoch from ``start_step`` on.

        Raises:
            PipelineError: the epoch has no such step.
        """
        ...

    def close(self) -> None:
        """Stop the background threads and release memory; safe to call twice."""
        ...

    def __enter__(self) -> TwoViewPipeline: ...

    def __exit__(self, *exc: object) -> None: ...
