"""An encoder's weights into a detector, with every name accounted for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastmoco.detection.errors import DetectionError
from fastmoco.detection.models import encoder_name
from fastmoco.layouts.files import read
from fastmoco.layouts.original import QUERY
from fastmoco.runs import checkpoint

_HEADS = ("fc.", "head.")
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Entered:
    """What became of the names.

    Attributes:
        source: what the file is.
        loaded: the encoder's names whose values entered.
        missing: the detector's names that the file has nothing for; they keep their random values.
        unexpected: the file's names that the detector has no place for.
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        parts = sorted({name.split(".")[0] + "." + name.split(".")[1] for name in self.missing})
        return (
            f"{self.source}: {len(self.loaded)} tensors of the encoder entered; "
            f"missing: {len(self.missing)}, of the detector's own parts alone ({', '.join(parts)}); "
            f"unexpected: {', '.join(self.unexpected) or 'none'}"
        )


def read_weights(path: Path, arch: str) -> tuple[str, dict[str, torch.Tensor]]:
    """What a file is, and its encoder's tensors under torchvision's names, the head included.

    Args:
        path: checkpoint of a run, state dictionary under torchvision's names (by torch.save or as safetensors), or
            checkpoint of the original MoCo.
        arch: the architecture that it must be of, where it says one.

    Raises:
        DetectionError, LayoutError, CheckpointError: it is none of these, or of another architecture.
    """
    found = read(path)
    if isinstance(found, dict) and "query_encoder" in found:
        state = checkpoint.load(path)
        kind, said, tensors = "checkpoint of a run", state["config"]["arch"], state["query_encoder"]
        tensors = {name.removeprefix("backbone."): value for name, value in tensors.items()}
    elif isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        kind, said = "checkpoint of the original MoCo", found.get("arch", arch)
        names = [name for name in found["state_dict"] if name.startswith(QUERY)]
        if not names:
            raise DetectionError(f"--init {path} has no {QUERY}* as a checkpoint of the original MoCo has")
        tensors = {name.removeprefix(QUERY): found["state_dict"][name] for name in names}
    else:
        kind, said, tensors = "state dictionary", arch, found
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise DetectionError(f"--init {path} is no checkpoint and no state dictionary; save model.state_dict()")
    if said != arch:
        raise DetectionError(f"--init {path} holds a {said}, not a {arch}; give --arch {said}")
    return f"{path} ({kind})", tensors


def enter(detector: nn.Module, layout: str, source: str, tensors: dict[str, Any]) -> Entered:
    """Copy an encoder's tensors to their places in a detector.

    A file from before BatchNorm counted its batches may lack those counters.

    Args:
        detector: whose encoder gets the values.
        layout: `c4` or `fpn`.
        source: what the messages call the file.
        tensors: under the encoder's names, with the head `fc` or `head` if it likes.

    Raises:
        DetectionError: a name of the encoder is missing, one is too many that is not the head's, or a shape differs.
    """
    own = detector.state_dict()
    places = {encoder_name(layout, name): name for name in own}
    del places[None]
    loaded = [name for name in places if name in tensors]
    lacking = [name for name in places if name not in tensors and not str(name).endswith(_COUNTER)]
    unexpected = [name for name in tensors if name not in places]
    wrong = [f"{name} is missing" for name in lacking]
    wrong += [f"{name} is too many" for name in unexpected if not name.startswith(_HEADS)]
    wrong += [
        f"{name} has the shape {list(tensors[str(name)].shape)}, not {list(own[places[name]].shape)}"
        for name in loaded
        if tensors[str(name)].shape != own[places[name]].shape
    ]
    if wrong:
        raise DetectionError(
            f"{source} does not fit the encoder: {'; '.join(wrong[:3])}, {len(wrong)} in all; is --arch right?"
        )
    detector.load_state_dict({places[name]: tensors[str(name)] for name in loaded}, strict=False)
    missing = [name for name in own if encoder_name(layout, name) is None]
    return Entered(source, tuple(map(str, loaded)), tuple(missing), tuple(unexpected))
