"""Input and output of a contestant of `imgs_per_sec.py --peers`."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines import ViewSpec


@dataclass(frozen=True)
class Work:
    """The images, and how to load them.

    Attributes:
        folder: contains the same JPEG files twice: as images/CLASS/NUMBER.jpg and as a shard set in shards/.
        batch_size: images per batch.
        image_size: side of a view in pixels.
        workers: number of threads or worker processes, one per core.
        device: where the batches are delivered, `cpu` or `cuda`.
    """

    folder: Path
    batch_size: int
    image_size: int
    workers: int
    device: str = "cpu"

    @property
    def images(self) -> Path:
        """Folder of class folders of JPEG files."""
        return self.folder / "images"

    @property
    def shards(self) -> Path:
        """The shard set of the same bytes."""
        return self.folder / "shards"

    @property
    def dtype(self) -> torch.dtype:
        """Of the batches; on a GPU the one in which a model in mixed precision reads its images."""
        return torch.float32 if self.device == "cpu" else torch.float16

    @property
    def spec(self) -> ViewSpec:
        """The augmentation."""
        return ViewSpec.moco_v2(self.image_size)


Batches = Generator[tuple[Any, ...], None, None]
"""Batches without end: query and key, [B, 3, S, S] of `Work.dtype`; for a decoder, which discards the pixels, the ids
of the images."""
