"""The environment that a benchmark's figures depend on besides its settings."""

from __future__ import annotations

from typing import Any

from fastmoco.runs.environment import environment as of_the_process
from fastmoco.runs.environment import versions

# the rivals' versions as well: a ratio holds for the versions between which it was measured
PACKAGES = (
    *("fastmoco", "torch", "torchvision", "numpy", "nvidia-dali-cuda130", "nvidia-dali-cuda120"),
    *("Pillow", "webdataset", "simplejpeg", "ffcv", "lightly", "albumentations", "opencv-python-headless"),
)
_KEPT = ("date", "commit", "python", "platform", "cpu", "cores", "torch_threads", "cuda")


def environment() -> dict[str, Any]:
    """Date, commit, machine and versions, in plain values."""
    here = of_the_process()
    return {name: here[name] for name in _KEPT} | {"packages": versions(PACKAGES)}
