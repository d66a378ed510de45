"""Damaged checkpoints and files of weights, through `--resume` and through the reader of encoders."""

from __future__ import annotations

import functools
import pickletools
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from fastmoco.checkpoints import checkpoint
from fastmoco.config import ConfigError
from fastmoco.layouts.encoders import read_encoder
from fastmoco.layouts.files import LayoutError
from fastmoco.model import encoders
from fastmoco.recipes import moco_v2
from fastmoco.trainer.resume import check_compatible
from fastmoco.trainer.step import TrainStep
from tests.fuzz.faults import ACCEPTED, Field, Kind
from tests.support.runs import narrow_resnet10
from tests.support.saved_files import saved, with_crcs

_DIGEST = "a" * 64
encoders._BUILDERS["resnet10"] = narrow_resnet10(1 / 16)  # in this process alone: a whole one has 20 MB
_CONFIG = replace(moco_v2(), arch="resnet10", image_size=32, batch_size=8, queue_size=24, feature_dim=16)
_NEWER = {
    "wandb", "max_bad_images", "on_nan", "max_rollbacks", "profile", "rank_timeout", "notify", "checkpoint_minutes",
    "keep_every", "checkpoint_space", "checkpoint_copy", "disk_patience", "accumulate", "weights",
    "crop_min", "head_layers", "head_width", "predictor", "optimiser", "weight_decay_on", "mean", "std", "drop_path",
    "views", "checkpoint_activations", "early_sizes", "channels",
}  # fmt: skip


def tiny() -> dict[str, torch.Tensor]:
    """The weights of a small ResNet, under torchvision's names."""
    torch.manual_seed(0)
    return dict(encoders.backbone("resnet10").state_dict())


@functools.cache
def _step() -> TrainStep:
    torch.manual_seed(0)
    return TrainStep(_CONFIG, torch.device("cpu"), 10)


def _state() -> dict[str, Any]:
    progress = {"epoch": 3, "step": 24, "samples": 192, "window": {}}
    data = {"digest": _DIGEST, "samples": 64}
    # in the order of the inputs that are tested by their numbers, without newer settings: both would move the damage
    config = {name: value for name, value in _CONFIG.to_dict().items() if name not in _NEWER}
    moved = {name: config.pop(name) for name in ("checkpoint_every", "keep_checkpoints")}
    names = list(config)
    place = names.index("check_every")
    config = {name: (config | moved)[name] for name in [*names[:place], *moved, *names[place:]]}
    return {
        "format": checkpoint.FORMAT,
        "config": config,
        "data": data,
        "progress": progress,
        **_step().state(),
    }


@functools.cache
def _files() -> list[bytes]:
    weights = tiny()
    original = {f"module.encoder_q.{name}": value for name, value in weights.items()}
    return [
        saved(_state()), saved(_state()), saved({"state_dict": original, "arch": "resnet10", "epoch": 200}),
        saved(weights, zipped=False), saved({"model": weights}, zipped=False),
        safetensors.torch.save(weights), safetensors.torch.save({k: v.half() for k, v in weights.items()}),
    ]  # fmt: skip


def _of_checkpoint(data: bytes) -> list[Field]:
    """Numbers in the header of safetensors, of a zip's pickle, or of a pickle."""
    if data[8:9] == b"{":
        length = min(int.from_bytes(data[:8], "little"), len(data) - 16)
        return [Field(0, "<Q"), *(Field(place, "<B") for place in range(8, max(8, length)))]
    begin = data.find(b"\x80\x02")
    fields = []
    try:
        for code, _, place in pickletools.genops(data[max(0, begin) :]):
            form = {"BINUNICODE": "<I", "BININT": "<I", "BININT1": "<B", "BININT2": "<H", "LONG1": "<B"}.get(
                code.name, "<B"
            )
            at = max(0, begin) + (place or 0) + (form != "<B" or code.name in ("BININT1", "LONG1"))
            if at + struct.calcsize(form) <= len(data):
                fields.append(Field(at, form))
    except Exception:  # a damaged pickle has those before its damage
        pass
    return fields


def _repair(data: bytes, rng: np.random.Generator) -> bytes:
    return with_crcs(data, rng) if data[:2] == b"PK" else data


def _outcome(data: bytes, number: int, folder: Path) -> str:
    """A file given as `--resume` or as weights."""
    path = folder / ("x.safetensors" if data[8:10] == b'{"' and number % 8 else "x.pt")
    path.write_bytes(data)
    try:
        if number % 2:
            read_encoder(path)
        else:
            state = checkpoint.load(path)
            with checkpoint.fitting(path):  # as in `Run.resume`
                check_compatible(path, state, _CONFIG, _DIGEST)
                _step().load_state(state)
    except (LayoutError, checkpoint.CheckpointError, ConfigError) as error:
        return "rejected: " + str(error).replace(str(folder), "")
    return ACCEPTED


CHECKPOINT = Kind(_files, _of_checkpoint, _repair, _outcome)
