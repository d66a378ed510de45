"""Files of weights: safetensors, torch.save and pickle. Written whole or not at all, read without running code."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError

from fastmoco.architectures import known
from fastmoco.checkpoints import checkpoint, saving
from shards.errors import PrintableError
from shards.format.manifest import parse_json
from shards.storage.files import whole_file, write_whole

# how numpy pickles a scalar and an array; numpy 1 names another module than numpy 2
_NUMPY = [
    (value.__reduce__()[0], f"{module}.multiarray.{name}")
    for value, name in ((np.float64(0), "scalar"), (np.empty(0), "_reconstruct"))
    for module in ("numpy.core", "numpy._core")
]
# what training scripts save beside the weights: their arguments and figures. Building one runs no code of the file
_PLAIN = [
    *(argparse.Namespace, PosixPath, np.ndarray, np.dtype, *(getattr(np.dtypes, name) for name in np.dtypes.__all__)),
    *_NUMPY,
]


MADE_BY = "fastmoco"
"""In the metadata of safetensors, what this program says of an encoder's images, as JSON: channels, image_size, mean,
std, scaling."""


class LayoutError(PrintableError):
    """Weights that cannot be read, or written in the layout asked for. The message names the file and reason."""


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write named tensors: as safetensors with `metadata` if the name ends in .safetensors, else by torch.save."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        write_whole(path, as_safetensors(tensors, metadata))
    else:
        saving.write(path, {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def as_safetensors(tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """The content of a file of safetensors with named tensors and `metadata`."""
    plain: dict[str, torch.Tensor] = {}
    stored: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        # safetensors refuses two names of one memory, as encoders have that share layers between blocks (CoaT)
        if value.untyped_storage().data_ptr() in stored:
            value = value.clone()
        stored.add(value.untyped_storage().data_ptr())
        plain[name] = value
    # transformers refuses safetensors whose metadata has no `format`
    return safetensors.torch.save(plain, {"format": "pt", **metadata})


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], **more: Any) -> None:
    """Write a pickle in the form that detectron2 reads: {"model": arrays, ...}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        pickle.dump({"model": dict(arrays), **more}, file)


def read(path: Path) -> Any:
    """The content of a file of torch.save or safetensors, on the CPU; no code in it is run.

    Raises:
        LayoutError: the file is missing or damaged, or holds more than tensors and plain values.
    """
    try:
        # a missing file is left to checkpoint.read, so that the message does not depend on the suffix
        if path.suffix == ".safetensors" and path.is_file():
            return _safetensors(path)
        with torch.serialization.safe_globals(_PLAIN):
            return checkpoint.read(path)
    except checkpoint.ForeignObject as error:
        raise LayoutError(
            f"{error}; if you trust the file, save its tensors alone where {error.held.split('.')[0]} is installed: "
            f"found = torch.load('{path}', 'cpu', weights_only=False); "
            "torch.save(found['state_dict'], 'weights.pth') (for a whole model: found.state_dict())"
        ) from error
    except checkpoint.CheckpointError as error:
        raise LayoutError(str(error)) from error
    except (OSError, SafetensorError) as error:
        raise LayoutError(f"{path} cannot be read: {error}") from error


def _safetensors(path: Path) -> dict[str, Any]:
    """The tensors of a file, and what an export of this program says beside them; others' metadata are not read."""
    with safetensors.safe_open(path, "pt") as file:
        about = file.metadata() or {}
    content: dict[str, Any] = safetensors.torch.load_file(path)
    if MADE_BY in about and known(about.get("arch", "")):
        try:
            content |= {"arch": about["arch"], MADE_BY: parse_json(about[MADE_BY])}
        except ValueError as error:
            raise LayoutError(f"{path} has damaged metadata: {MADE_BY} {error}; export it again") from error
    return content
