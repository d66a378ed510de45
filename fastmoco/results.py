"""Results: their standard error, and where a command writes them: tried before the work, written whole after it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from shards.storage.files import write_whole
from shards.storage.trial import check_file, check_folder, check_readable

__all__ = ["check_file", "check_folder", "check_readable", "standard_error", "write_json"]


def standard_error(percent: float, images: int) -> float:
    """Binomial standard error, in percentage points, of the share of `images` images that were classified right."""
    return math.sqrt(percent * (100 - percent) / images)


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result, whole or not at all; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(result, indent=2) + "\n").encode())
