"""Checkpoints, written: whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastmoco.runs.checkpoint import FORMAT, found
from fastmoco.runs.content import sealed
from shards.storage.files import whole_file


def save(folder: Path, state: dict[str, Any], keep: int) -> Path:
    """Write `state` as step-XXXXXXXX.pt, whole or not at all, and drop all but the newest `keep` checkpoints.

    Args:
        folder: the run's `checkpoints` folder; created if missing.
        state: tensors and plain values, among them `progress` {step}; `format` where it is not FORMAT.
        keep: number of checkpoints to keep.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{state['progress']['step']:08d}.pt"
    write(path, sealed({"format": FORMAT, **state}))
    # only now that the new one is whole: a failed write must not leave fewer checkpoints
    for old in found(folder)[keep:]:
        old.unlink()
    return path


def write(path: Path, content: Any) -> None:
    """Write a file by torch.save, whole or not at all.

    Args:
        path: the file; its folder exists.
        content: tensors and plain values.

    Raises:
        OSError: it cannot be written; the error names `path`.
    """
    with whole_file(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # where a write fails, torch raises an error of its own over the system's, and says nothing of the cause
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
