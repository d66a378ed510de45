"""Local paths and fsspec URLs."""

from __future__ import annotations

import os
from pathlib import Path


def is_url(place: str | Path) -> bool:
    """Whether a place is an fsspec URL (`s3://bucket/prefix`) rather than a local path."""
    return "://" in os.fspath(place)


def parent(place: str) -> str:
    """The folder of a file."""
    return place.rpartition("/")[0] if is_url(place) else os.path.dirname(place) or "."


def joined(root: str, path: str) -> str:
    """`path` relative to `root`; unchanged if it is absolute or a URL."""
    if is_url(path):
        return path
    return f"{root.rstrip('/')}/{path}" if is_url(root) else os.path.join(root, path)
