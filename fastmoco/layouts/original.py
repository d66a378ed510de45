"""Convert checkpoints from and to the layout of the original MoCo (github.com/facebookresearch/moco).

Such a file holds `epoch` (epochs done), `arch` (torchvision's name), `state_dict` with `module.encoder_q.*`,
`module.encoder_k.*`, `module.queue` (float32 [D, K]) and `module.queue_ptr` (int64 [1]), and `optimizer`. The head
is `fc` (v1), or `fc.0` and `fc.2` (v2). Its optimiser lists the parameters of both encoders, the query's first; only
those have gradients and a state.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastmoco.checkpoints.checkpoint import FORMAT
from fastmoco.config import Config
from fastmoco.flags import flag
from fastmoco.layouts.architecture import arch_of, channels_of
from fastmoco.layouts.files import LayoutError, read
from fastmoco.layouts.finding import flat
from fastmoco.layouts.known import CONTAINERS
from fastmoco.layouts.sound import check_finite
from fastmoco.model.dictionary import Queue
from fastmoco.model.encoders import Encoder
from fastmoco.recipes import moco_v1, moco_v2

QUERY, KEY = "encoder_q.", "encoder_k."
"""What the names of the encoders' tensors begin with, behind `module.`."""
_ENCODERS = {"query_encoder": QUERY, "key_encoder": KEY}
_WRAPPED = "module."  # by DistributedDataParallel
log = logging.getLogger(__name__)

_UNKNOWN = "not recorded"  # in place of the training set's digest: no set has it


def to_original(state: dict[str, Any]) -> dict[str, Any]:
    """Convert a checkpoint of this program to the original's layout.

    Raises:
        LayoutError: the run had no queue, which the original's layout needs, or has a head or an optimiser that the
            original does not have.
    """
    if "queue_KD" not in state.get("queue", {}):
        raise LayoutError("the checkpoint has no queue of keys, which the original MoCo's layout needs")
    _check_continued(state["config"])
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


def _check_continued(config: dict[str, Any]) -> None:
    """Raise LayoutError for settings under which the original's program would not load the state."""
    for name, theirs in (
        ("head", ("linear", "mlp")), ("predictor", ("none",)), ("optimiser", ("sgd",)), ("weight_decay_on", ("all",)),
    ):  # fmt: skip
        own = config.get(name, theirs[0])  # older runs had no other
        if own not in theirs:
            raise LayoutError(
                f"the run has {flag(name)} {own}, and the original MoCo continues runs with {' or '.join(theirs)} "
                "alone; use --format torchvision for the encoder"
            )


def from_original(path: Path) -> dict[str, Any]:
    """Convert a file in the original's layout to a checkpoint of this program; what was recognised is logged.

    A cut file, as its authors publish them, has the query encoder alone; the key encoder is then a copy of it and the
    queue random, as at the start of a run. Settings that the file does not record are the recipe's: `moco-v2` if the
    head is an MLP, else `moco-v1`. It does not record the training set or the step either, so pretraining cannot be
    resumed from the result.

    Raises:
        LayoutError: the file is in another layout, or lacks a part.
    """
    content = read(path)
    tensors = _without_containers(flat(content))
    query, key = _renamed(tensors, QUERY), _renamed(tensors, KEY)
    if not query:
        raise LayoutError(
            f"{path} is no checkpoint of the original MoCo: no name begins with {QUERY}; other files with an encoder "
            "are read by --checkpoint with --format, and by fastmoco train --init"
        )
    missing = [name for name in ("queue", "queue_ptr") if name not in tensors] + [KEY + "*"] * (not key)
    whole = not missing
    if len(missing) in (1, 2):
        raise LayoutError(f"{path} lacks {', '.join(missing)}; give the checkpoint of a pretraining, whole or cut")
    config = _config(path, query, content.get("arch"), tensors["queue"].shape[1] if whole else None)
    made = {
        "format": FORMAT,
        "config": config.to_dict(),
        "data": {"digest": _UNKNOWN, "samples": 0},
        # the epoch is recorded, its number of steps is not
        "progress": {"epoch": content.get("epoch", 0), "step": 0, "samples": 0},
        "query_encoder": _checked(path, config, query),
        "key_encoder": _checked(path, config, key) if whole else query,
        "queue": _queue(config, tensors if whole else None),
    }
    check_finite(path, query | key)
    if "optimizer" in content and whole:
        made["optimiser"] = _with_parameters(content["optimizer"], _parameters(_encoder(made["config"])))
    copied = "the query encoder alone: the key encoder is a copy of it, and the queue is random"
    held = "both encoders and the queue" if whole else copied
    log.info("%s: original MoCo, %s with the head %s; %s", path, config.arch, config.head, held)
    return made


def is_imported(state: dict[str, Any]) -> bool:
    """Whether a checkpoint is the result of `from_original`, which knows little of its training."""
    return state["data"]["digest"] == _UNKNOWN


def _config(path: Path, query: dict[str, torch.Tensor], recorded: str | None, queue_size: int | None) -> Config:
    """The recipe's settings, with those that a query encoder shows."""
    backbone = {n.removeprefix("backbone."): tensor for n, tensor in query.items() if n.startswith("backbone.")}
    arch = arch_of(path, backbone, None, recorded)
    # an MLP has fc.0 and fc.2, the linear head fc alone
    base, last = (moco_v2(), "head.2.weight") if "head.2.weight" in query else (moco_v1(), "head.weight")
    if last not in query:
        raise LayoutError(f"{path} lacks the head, {QUERY}fc; read its encoder by --checkpoint with --format")
    return replace(
        base, arch=arch, feature_dim=query[last].shape[0], queue_size=queue_size or base.queue_size,
        channels=channels_of(backbone, arch),
    )  # fmt: skip


def _without_containers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors without keys such as `state_dict` at the front of their names."""
    return {re.sub(rf"^(({'|'.join(CONTAINERS)})\.)+", "", name): tensor for name, tensor in tensors.items()}


def _queue(config: Config, tensors: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """The state of the file's queue, or of a random one."""
    if tensors is None:
        return Queue(config.queue_size, config.feature_dim, torch.Generator().manual_seed(config.seed)).state_dict()
    return {
        "queue_KD": tensors["queue"].float().T.contiguous(),
        "pointer": tensors["queue_ptr"].reshape(()).clone(),
        # not recorded; taken as full, as a queue is after K / batch steps
        "seen": torch.tensor(config.queue_size),
    }


def _renamed(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of one encoder under this program's names."""
    names = {name: name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}
    return {
        ("head." + short.removeprefix("fc.") if short.startswith("fc.") else "backbone." + short): _float32(
            tensors[name]
        )
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


def _float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _encoder(config: dict[str, Any]) -> Encoder:
    return Encoder(config["arch"], config["head"], config["feature_dim"], channels=config.get("channels", 3))


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
