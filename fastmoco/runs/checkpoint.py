"""Checkpoints: tensors and plain values only, written so that a crash never leaves a half one.

Layout of a checkpoint (a dictionary): `format`, `config`, `data` {digest, samples}, `progress` {epoch, step,
samples, window}, `query_encoder`, `key_encoder` (not with the memory bank), `queue` or `memory_bank` (neither end to
end), `optimiser`, `scaler`. No generator's state is kept: order, views, shuffles and the memory bank's draws are pure
functions of the seed and the step.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from fastmoco.config import Config
from fastmoco.model.encoders import Backbone, backbone
from pipelines.order.policy import choose_policy
from shards.errors import UserError

log = logging.getLogger(__name__)

FORMAT = "fastmoco-checkpoint/1"
_NAME = re.compile(r"step-(\d{8})\.pt")
_FREE = {
    "recipe", "init", "shards", "stream", "out", "epochs", "steps", "precision", "compile", "resume",
    "pipeline", "threads", "prefetch", "decoder_load",
    "checkpoint_every", "keep_checkpoints", "log_every", "knn_every", "knn_train", "knn_val", "knn_k",
    "knn_temperature", "base_lr", "base_batch_size", "lr", "weight_decay", "momentum", "temperature",
    "momentum_key", "momentum_key_schedule", "bank_momentum", "symmetric", "check_every",
    "schedule", "milestones", "decay", "decay_steps", "warmup",
}  # fmt: skip
"""Settings that may change when a run is resumed; the others say what the weights, the queue and the order are."""


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be used. The message names the file, the reason and a remedy."""


def save(folder: Path, state: dict[str, Any], keep: int) -> Path:
    """Write `state` as step-XXXXXXXX.pt and drop all but the newest `keep` checkpoints.

    The file is written under a temporary name, synced and renamed.

    Args:
        folder: the run's `checkpoints` folder; made where missing.
        state: holds `progress` {step}; tensors and plain values only. Its `format`, if it has one, tells it from a
            training's checkpoint.
        keep: number of checkpoints to keep.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{state['progress']['step']:08d}.pt"
    partial = path.with_suffix(".pt.partial")
    with partial.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _sync_folder(folder)
    for old in found(folder)[keep:]:
        old.unlink()
    return path


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def found(folder: Path) -> list[Path]:
    """Checkpoints in a folder, the newest first."""
    return sorted((p for p in folder.glob("step-*.pt") if _NAME.fullmatch(p.name)), reverse=True)


def load(path: Path, layout: str = FORMAT) -> dict[str, Any]:
    """Read one checkpoint of the format `layout` onto the CPU.

    Raises:
        CheckpointError: it is missing, damaged or foreign.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; give the path of a step-XXXXXXXX.pt")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself does not look at the checksums
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read: {reason}; use the checkpoint before it") from error
    if not isinstance(state, dict) or state.get("format") != layout:
        raise CheckpointError(f"{path} is not a checkpoint of this program ({layout}); give one that it wrote")
    return state


def newest(folder: Path, layout: str = FORMAT) -> tuple[Path, dict[str, Any]] | None:
    """The newest readable checkpoint of a folder, or None where there is none.

    A damaged one is reported and the one before it taken; where all are damaged CheckpointError is raised,
    since starting anew would bury them.
    """
    paths = found(folder)
    for path in paths:
        try:
            return path, load(path, layout)
        except CheckpointError as error:
            log.warning("%s", error)
    if paths:
        raise CheckpointError(
            f"none of the {len(paths)} checkpoints in {folder} can be read; move them away, or choose another --out"
        )
    return None


def newest_of_same(
    folder: Path, layout: str, part: str, identity: dict[str, Any], what: str
) -> tuple[Path, dict[str, Any]] | None:
    """`newest`, where it was made under the same settings.

    Args:
        folder: with the checkpoints.
        layout: their format.
        part: where a checkpoint keeps the settings that decide its weights.
        identity: these settings now, in plain values.
        what: a checkpoint is of, for the message.

    Raises:
        CheckpointError: a setting was another one, or as `newest`.
    """
    latest = newest(folder, layout)
    if latest is None:
        return None
    path, state = latest
    was = state[part]
    differing = [f"{k} was {was.get(k)!r}, now {now!r}" for k, now in identity.items() if was.get(k) != now]
    if differing:
        raise CheckpointError(f"{path} is of another {what}: {'; '.join(differing)}. Choose another --out")
    return latest


def check_compatible(path: Path, state: dict[str, Any], config: Config, digest: str) -> None:
    """Raise CheckpointError where resuming under `config` on these data would not continue the same run."""
    recorded = Config.from_dict(state["config"]).to_dict()  # a setting younger than the run has its default
    current = config.to_dict()
    recorded["order"] = choose_policy(state["config"].get("order", "global"), state["data"]["samples"])
    current["order"] = choose_policy(config.order, state["data"]["samples"])
    differing = [
        f"{f.name} was {recorded[f.name]!r}, now {current[f.name]!r}"
        for f in fields(Config)
        if f.name not in _FREE and recorded[f.name] != current[f.name]
    ]
    if state["data"]["digest"] != digest:
        what, place = ("tars were", config.stream) if config.stream else ("shard set was", config.shards)
        differing.append(f"the {what} {state['data']['digest'][:12]}, now {digest[:12]} ({place})")
    if differing:
        raise CheckpointError(
            f"{path} is of another run: {'; '.join(differing)}. Use the same settings, or another --out"
        )


def load_backbone(path: Path) -> tuple[Backbone, Config]:
    """The trained query encoder of a checkpoint without its head, in evaluation mode, and the run's settings."""
    state = load(path)
    config = Config.from_dict(state["config"])
    net = backbone(config.arch)
    prefix = "backbone."
    weights = {k[len(prefix) :]: v for k, v in state["query_encoder"].items() if k.startswith(prefix)}
    net.load_state_dict(weights)
    return net.eval().to(memory_format=torch.channels_last), config  # pyright: ignore[reportCallIssue]
