"""Convert checkpoints from and to the layout of the original MoCo (github.com/facebookresearch/moco).

Such a file holds `epoch` (epochs done), `arch` (torchvision's name), `state_dict` with `module.encoder_q.*`,
`module.encoder_k.*`, `module.queue` (float32 [D, K]) and `module.queue_ptr` (int64 [1]), and `optimizer`. The head
is `fc` (v1), or `fc.0` and `fc.2` (v2). Its optimiser lists the parameters of both encoders, the query's first; only
those have gradients and a state.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastmoco.config import ARCHITECTURES, Config
from fastmoco.layouts.files import LayoutError, read
from fastmoco.model.encoders import Encoder
from fastmoco.recipes import moco_v1, moco_v2
from fastmoco.runs.checkpoint import FORMAT

QUERY = "encoder_q."
"""What the names of the query encoder's tensors begin with, behind `module.`."""
_ENCODERS = {"query_encoder": QUERY, "key_encoder": "encoder_k."}
_WRAPPED = "module."  # by DistributedDataParallel; the original writes it, others strip it
_UNKNOWN = "not recorded"  # in place of the training set's digest: no set has it


def tensors_of(found: Any) -> dict[str, torch.Tensor] | None:
    """The tensors of a checkpoint with a `state_dict`, or of a state dictionary, without `module.` before their names.

    None where `found` is neither.
    """
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict):
        return None
    if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in found.items()):
        return None
    return {name.removeprefix(_WRAPPED): value for name, value in found.items()}


def to_original(state: dict[str, Any]) -> dict[str, Any]:
    """Convert a checkpoint of this program to the original's layout.

    Raises:
        LayoutError: the run had no queue, which the original's layout needs.
    """
    if "queue_KD" not in state.get("queue", {}):
        raise LayoutError("the checkpoint has no queue of keys, which the original MoCo's layout needs")
    tensors = {
        # the original keeps keys as columns [D, K], and in float32
        _WRAPPED + "queue": state["queue"]["queue_KD"].float().T.contiguous(),
        _WRAPPED + "queue_ptr": state["queue"]["pointer"].reshape(1),
    }
    for part, prefix in _ENCODERS.items():
        for name, value in state[part].items():
            tensors[_WRAPPED + prefix + name.removeprefix("backbone.").replace("head.", "fc.")] = value.contiguous()
    made = {"epoch": state["progress"]["epoch"], "arch": state["config"]["arch"], "state_dict": tensors}
    if "optimiser" in state:
        # the original's optimiser has the parameters of both encoders, and refuses a state of another number of them
        made["optimizer"] = _with_parameters(state["optimiser"], 2 * _parameters(_encoder(state["config"])))
    return made


def from_original(path: Path) -> dict[str, Any]:
    """Convert a file in the original's layout to a checkpoint of this program.

    Settings that the file does not record are the recipe's: `moco-v2` if the head is an MLP, else `moco-v1`. It does
    not record the training set or the step either, so pretraining cannot be resumed from the result.

    Raises:
        LayoutError: the file is in another layout, or its architecture is unknown.
    """
    found = read(path)
    if not isinstance(found, dict) or not {"arch", "epoch", "state_dict"} <= set(found):
        raise LayoutError(f"{path} is no checkpoint of the original MoCo: it needs arch, epoch and state_dict")
    tensors, arch = tensors_of(found), found["arch"]
    if tensors is None:
        raise LayoutError(f"{path} is no checkpoint of the original MoCo: its state_dict holds more than tensors")
    if arch not in ARCHITECTURES:
        raise LayoutError(f"{path} has an encoder {arch!r}; known: {', '.join(ARCHITECTURES)}")
    missing = [name for name in ("queue", "queue_ptr") if name not in tensors]
    if missing:
        raise LayoutError(f"{path} lacks {', '.join(missing)}; give the checkpoint of a pretraining")
    queue_DK = tensors["queue"]
    # an MLP has fc.0 and fc.2, the linear head fc alone
    base = moco_v2() if QUERY + "fc.2.weight" in tensors else moco_v1()
    config = replace(base, arch=arch, feature_dim=queue_DK.shape[0], queue_size=queue_DK.shape[1])
    parts = {part: _checked(path, config, _renamed(tensors, prefix)) for part, prefix in _ENCODERS.items()}
    queue = {
        "queue_KD": queue_DK.T.contiguous(),
        "pointer": tensors["queue_ptr"].reshape(()).clone(),
        # not recorded; taken as full, as a queue is after K / batch steps
        "seen": torch.tensor(queue_DK.shape[1]),
    }
    made = {
        "format": FORMAT,
        "config": config.to_dict(),
        "data": {"digest": _UNKNOWN, "samples": 0},
        # the epoch is recorded, its number of steps is not
        "progress": {"epoch": found["epoch"], "step": 0, "samples": 0},
        **parts,
        "queue": queue,
    }
    if "optimizer" in found:
        made["optimiser"] = _with_parameters(found["optimizer"], _parameters(_encoder(made["config"])))
    return made


def _renamed(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of one encoder under this program's names."""
    names = {name: name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}
    return {
        ("head." + short.removeprefix("fc.") if short.startswith("fc.") else "backbone." + short): tensors[name]
        for name, short in names.items()
    }


def _checked(path: Path, config: Config, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights, if they are exactly those of the encoder that `config` describes."""
    try:
        # load_state_dict compares names and shapes of all parts, the head included
        _encoder(config.to_dict()).load_state_dict(weights)
    except RuntimeError as error:
        # the first line says only that there are errors
        first = str(error).splitlines()[1].strip()
        raise LayoutError(f"{path} does not hold the weights of its arch {config.arch}: {first[:200]}") from error
    return weights


def _encoder(config: dict[str, Any]) -> Encoder:
    return Encoder(config["arch"], config["head"], config["feature_dim"])


def _parameters(encoder: Encoder) -> int:
    return len(list(encoder.parameters()))


def _with_parameters(optimiser: dict[str, Any], count: int) -> dict[str, Any]:
    """An optimiser's state that lists the parameters 0 … count − 1; parameters beyond have no state."""
    if any(place >= count for place in optimiser["state"]):
        raise LayoutError("the optimiser has a state for parameters that are not the query encoder's")
    groups = optimiser["param_groups"]
    if len(groups) != 1:
        raise LayoutError(f"the optimiser has {len(groups)} groups of parameters; the original MoCo's has one")
    return {"state": optimiser["state"], "param_groups": [groups[0] | {"params": list(range(count))}]}
