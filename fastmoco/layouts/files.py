"""Files of weights: safetensors, torch.save and pickle. Written whole or not at all, read without running code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from fastmoco.runs import checkpoint
from shards.errors import UserError
from shards.storage.files import whole_file, write_whole


class LayoutError(UserError, ValueError):
    """Weights that cannot be read, or written in the layout asked for. The message names the file and reason."""


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write named tensors: as safetensors with `metadata` if the name ends in .safetensors, else by torch.save."""
    # contiguous, which safetensors demands
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        # transformers refuses safetensors whose metadata has no `format`
        write_whole(path, safetensors.torch.save(plain, {"format": "pt", **metadata}))
    else:
        checkpoint.write(path, plain)


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
            return safetensors.torch.load_file(path)
        return checkpoint.read(path)
    except checkpoint.CheckpointError as error:
        raise LayoutError(str(error)) from error
    except (OSError, SafetensorError) as error:
        raise LayoutError(f"{path} cannot be read: {error}") from error
