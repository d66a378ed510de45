"""The environment that a benchmark's figures depend on besides its settings."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

# the rivals' versions as well: a ratio holds for the versions between which it was measured
PACKAGES = (
    *("fastmoco", "torch", "torchvision", "numpy", "nvidia-dali-cuda130", "nvidia-dali-cuda120"),
    *("Pillow", "webdataset", "simplejpeg", "ffcv", "lightly", "albumentations", "opencv-python-headless"),
)


def environment() -> dict[str, Any]:
    """Date, commit, machine and versions, in plain values."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Commit of the checkout that contains this file, marked if files differ from it; None outside a checkout."""
    try:
        described = subprocess.run(
            # no tag matches --exclude=*, so a commit has one name whether it is tagged or not
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).resolve().parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip() or None
