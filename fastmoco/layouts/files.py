"""Files of weights: safetensors, torch's and pickle; written whole or not at all, read without running code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from fastmoco.runs import checkpoint
from shards.errors import UserError
from shards.storage.files import partial, sync_folder


class LayoutError(UserError, ValueError):
    """Weights that cannot be read or written as asked for. The message names the file, the reason and a remedy."""


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to; `path` gets its content when all of it is on disk, and nothing where it fails."""
    aside = partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise LayoutError(f"{path} cannot be written: {error.strerror}; choose another --out") from error
    finally:
        aside.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write named tensors: as safetensors with `metadata` where the name ends in .safetensors, else by torch.save."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as file:
        if path.suffix == ".safetensors":
            file.write(safetensors.torch.save(plain, {"format": "pt", **metadata}))
        else:
            torch.save(plain, file)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], **more: Any) -> None:
    """Write a pickle as detectron2 reads it: {"model": arrays, ...}."""
    with whole_file(path) as file:
        pickle.dump({"model": dict(arrays), **more}, file)


def read(path: Path) -> Any:
    """What a file of torch.save or of safetensors holds, on the CPU; no code in it is run.

    Raises:
        LayoutError: there is no such file, or it cannot be read, or holds more than tensors and plain values.
    """
    try:
        if path.suffix == ".safetensors" and path.is_file():
            return safetensors.torch.load_file(path)
        return checkpoint.read(path)
    except checkpoint.CheckpointError as error:
        raise LayoutError(str(error)) from error
    except (OSError, SafetensorError) as error:
        raise LayoutError(f"{path} cannot be read: {error}") from error
