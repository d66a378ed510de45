"""Folders compared, and what run folders and shard sets say."""

from __future__ import annotations

import os
from pathlib import Path


def same_files(first: Path, second: Path) -> bool:
    """Whether two folders hold the same names with the same bytes."""
    names = sorted(os.listdir(first))
    return names == sorted(os.listdir(second)) and all(
        (first / name).read_bytes() == (second / name).read_bytes() for name in names
    )
