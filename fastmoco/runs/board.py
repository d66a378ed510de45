"""A run's records in TensorBoard: figures in groups, the settings, and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from fastmoco.runs.environment import shareable

_GROUPS = {
    "imgs_per_sec": "speed", "data_wait": "speed", "knn_top1": "probe", "top1": "probe", "top5": "probe",
    "AP": "eval", "AP50": "eval", "AP75": "eval", "segm_AP": "eval", "segm_AP50": "eval", "segm_AP75": "eval",
}  # fmt: skip
_LEFT_OUT = ("step", "epoch", "knn_images")


def grouped(figures: Mapping[str, Any]) -> dict[str, float]:
    """Figures under the names of their curves, `train/loss`; without those that are no curve or have no value."""
    return {
        f"{_GROUPS.get(name.partition('/')[0], 'train')}/{name}": value
        for name, value in figures.items()
        if name not in _LEFT_OUT and value is not None
    }


class Board:
    """Writer of one run's event files.

    Args:
        folder: of the event files.
        config: settings in plain values; shown as text, and in the table of hyperparameters.
        step: the step that the run resumes from; figures of later steps are dropped.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        self._folder = str(folder)
        self._writer = SummaryWriter(self._folder, purge_step=step + 1)
        config = shareable(config)
        text = json.dumps(config, indent=2)
        self._writer.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()), step)
        # not add_hparams, which makes a second run beside this one
        values = {name: value for name, value in config.items() if isinstance(value, bool | int | float | str)}
        assert self._writer.file_writer is not None
        for summary in hparams(values, {"train/loss": 0.0, "probe/knn_top1": 0.0}):
            self._writer.file_writer.add_summary(summary)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add figures at their `step`."""
        for name, value in grouped(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def show(self, name: str, picture: Path, step: int) -> None:
        """Add a picture file at a step."""
        with Image.open(picture) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), global_step=step, dataformats="HWC")

    def rewind(self, step: int) -> None:
        """Drop the figures of the steps after `step`."""
        self._writer.close()
        self._writer = SummaryWriter(self._folder, purge_step=step + 1)

    def close(self) -> None:
        """Flush and close the files."""
        self._writer.close()
