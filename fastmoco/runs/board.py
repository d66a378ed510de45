"""A run's records in TensorBoard: figures in groups, the settings, and pictures."""

from __future__ import annotations

import io
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams, image, scalar, text

from fastmoco.runs.appended import Appended
from fastmoco.runs.environment import shareable

_GROUPS = {
    "imgs_per_sec": "speed", "data_wait": "speed", "knn_top1": "probe", "top1": "probe", "top5": "probe",
    "AP": "eval", "AP50": "eval", "AP75": "eval", "segm_AP": "eval", "segm_AP50": "eval", "segm_AP75": "eval",
}  # fmt: skip
_LEFT_OUT = ("step", "epoch", "knn_images", "knn_left_out")


def grouped(figures: Mapping[str, Any]) -> dict[str, float]:
    """Figures under the names of their curves, `train/loss`; without those that are no curve or have no value."""
    return {
        f"{_GROUPS.get(name.partition('/')[0], 'train')}/{name}": value
        for name, value in figures.items()
        if name not in _LEFT_OUT and value is not None
    }


class Board:
    """Writer of one run's event files.

    Not SummaryWriter: where a write fails, its thread ends with a traceback and every later figure with it.

    Args:
        folder: of the event files.
        config: settings in plain values; shown as text, and in the table of hyperparameters.
        step: the step that the run resumes from; figures of later steps are dropped, at 0 also those of step 0.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        # in the order of their names the files are read
        name = f"events.out.tfevents.{time.time():017.6f}.{platform.node()}.{os.getpid()}"
        self._file = Appended(folder / name)
        self._add(Event(file_version="brain.Event:2"), step + 1)
        self.rewind(step or -1)
        config = shareable(config)
        shown = json.dumps(config, indent=2)
        self._add_summary(text("config", "\n".join(f"    {line}" for line in shown.splitlines())), step)
        # not add_hparams, which makes a second run beside this one
        values = {name: value for name, value in config.items() if isinstance(value, bool | int | float | str)}
        for summary in hparams(values, {"train/loss": 0.0, "probe/knn_top1": 0.0}):
            self._add_summary(summary, 0)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add figures at their `step`; `flush` writes them."""
        for name, value in grouped(record).items():
            self._add_summary(scalar(name, value), record["step"])

    def show(self, name: str, picture: Path, step: int) -> None:
        """Add a picture file at a step; `flush` writes it."""
        with Image.open(picture) as opened:
            self._add_summary(image(name, np.asarray(opened.convert("RGB")), dataformats="HWC"), step)

    def flush(self) -> None:
        """Write what is added; raises OSError, after which it is written by a later call."""
        self._file.path.parent.mkdir(exist_ok=True)
        self._file.flush()

    def rewind(self, step: int) -> None:
        """Drop the figures of the steps after `step`, in this file and those before it."""
        self._add(Event(session_log=SessionLog(status=SessionLog.START)), step + 1)

    def close(self) -> None:
        """Close the files."""
        self._file.close()

    def _add_summary(self, summary: Any, step: int) -> None:
        self._add(Event(summary=summary), step)

    def _add(self, event: Any, step: int) -> None:
        event.wall_time, event.step = time.time(), step
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self._file.add(record.getvalue())
