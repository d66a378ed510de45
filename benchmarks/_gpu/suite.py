"""What the parts of `gpu_suite.py` share: sizes, settings, and rows that are measured one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from _sources import make_set
from fastmoco.config import Config
from fastmoco.recipes import moco_v2

Row = dict[str, Any]
Rows = Iterator[tuple[Row, Callable[[], Row]]]
"""For each row what it measures, and a function that measures it and returns the figures."""


@dataclass(frozen=True)
class Suite:
    """Settings of the suite, in plain values, because each part is a separate process.

    Attributes:
        device: cuda or cpu.
        tiny: whether only to show that the parts work.
        shards: folder of the shard set.
        arch: encoder.
        batch_size: images per step.
        image_size: side of a view in pixels.
        cores: that this process may use.
    """

    device: str
    tiny: bool
    shards: str
    arch: str
    batch_size: int
    image_size: int
    cores: int

    @property
    def on(self) -> torch.device:
        """The device."""
        return torch.device(self.device)

    @property
    def card(self) -> str:
        """The GPU's name, or cpu."""
        return torch.cuda.get_device_name() if self.device == "cuda" else "cpu"

    @property
    def low(self) -> str:
        """Precision of most rows: bf16 on a GPU; on a CPU, where it may be slow, float32."""
        return "bf16" if self.device == "cuda" else "fp32"

    def config(self, **changes: Any) -> Config:
        """The recipe moco-v2 with the suite's sizes and `changes`."""
        sizes = {"arch": self.arch, "batch_size": self.batch_size, "image_size": self.image_size}
        return replace(moco_v2(), **{**sizes, "precision": self.low, **changes})

    def settle(self) -> None:
        """Wait until the device has finished its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def make_images(suite: Suite, folder: Path) -> None:
    """Write a set of generated images, twice as large as the views, to `folder`/shards."""
    make_set(folder, max(64, 4 * suite.batch_size), 2 * suite.image_size)
