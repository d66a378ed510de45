"""Processes that a benchmark starts."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def environ() -> dict[str, str]:
    """Environment variables for `python -m _peers.run` and the like: this folder comes first on the import path."""
    path = [str(FOLDER), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
