"""Results: their standard error, and where a command writes them: tried before the work, written whole after it."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

from fastmoco.flags import ConfigError
from shards.storage.files import write_whole


def standard_error(percent: float, images: int) -> float:
    """Binomial standard error, in percentage points, of the share of `images` images that were classified right."""
    return math.sqrt(percent * (100 - percent) / images)


def check_file(flag: str, path: Path | None) -> None:
    """Make the folder of a file that is to be written, and raise ConfigError where it cannot be written."""
    if path is None:
        return
    if path.is_dir():
        raise ConfigError(f"{flag} {path} is a folder; give the name of a file")
    _try(flag, path, path.parent, "a file")


def check_folder(flag: str, path: Path) -> None:
    """Make a folder that is to be written to, and raise ConfigError where it cannot be."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{flag} {path} is a file; give a folder")
    _try(flag, path, path, "a folder")


def _try(flag: str, path: Path, folder: Path, what: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # by writing: permissions alone say nothing about a full or read-only file system, and nothing to root
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"{flag} {path} cannot be written: {reason}; give {what} that you may write to") from error


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result, whole or not at all."""
    write_whole(path, (json.dumps(result, indent=2) + "\n").encode())
