"""The loaders that `imgs_per_sec.py --peers` compares.

A contestant is a function that takes a `Work` and gives batches without end. All of them load the same images, make
the views of MoCo v2 of them (the numbers are `pipelines.ViewSpec`'s) unless their note says otherwise, and deliver
normalised float32 on the CPU. Each is written from its library's own documentation with the settings that suit it
best, which comments beside it give reasons for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from _peers import dataloader as loaders
from _peers import threads
from _peers.work import Batches, Work
from pipelines.choice import install


@dataclass(frozen=True)
class Contestant:
    """A way to load images.

    Attributes:
        name: by which `--only` and the rows know it.
        label: for the table.
        kind: `ours` and `peer` make the same two views; `other` does less; `limit` only decodes.
        start: begins to load, when its first batch is asked for; closing the iterator ends it.
        modules: what it imports that not everybody has.
        install: the command that installs them.
        note: what to know about its figure.
    """

    name: str
    label: str
    kind: Literal["ours", "peer", "other", "limit"]
    start: Callable[[Work], Batches]
    modules: tuple[str, ...] = ()
    install: str = ""
    note: str = ""

    @property
    def missing(self) -> str:
        """What has to be installed first, in words; empty where nothing has."""
        absent = [module for module in self.modules if not _found(module)]
        return f"not installed ({', '.join(absent)}): {self.install}" if absent else ""


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would lie in
        return False


_BENCH = "pip install 'fastmoco[bench]'"
_EVERYONE = (
    Contestant("torch", "fastmoco, torch backend", "ours", threads.torch_backend),
    Contestant(
        "dali-cpu", "DALI's CPU backend", "peer", threads.dali_cpu, ("nvidia.dali",), install(),
        "fastmoco's graph; colours by fastmoco",
    ),
    Contestant(
        "original", "original MoCo's loader", "peer", loaders.original, note="files, Pillow, torchvision v1"
    ),
    Contestant(
        "torchvision-v2", "torchvision v2", "peer", loaders.torchvision_v2, note="files, uint8 tensors"
    ),
    Contestant(
        "lightly", "lightly MoCoV2Transform", "peer", loaders.lightly, ("lightly", "lightning_utilities"), _BENCH,
        "files, Pillow, torchvision v2",
    ),
    Contestant(
        "albumentations", "albumentations", "peer", loaders.albumentations, ("albumentations", "cv2"), _BENCH,
        "OpenCV; resize without antialiasing",
    ),
    Contestant(
        "albumentations-area", "albumentations, area", "peer", loaders.albumentations_area, ("albumentations", "cv2"),
        _BENCH, "OpenCV; antialiased as everybody else's",
    ),
    Contestant(
        "webdataset", "webdataset, torchvision", "peer", loaders.webdataset, note="tars, Pillow, torchvision v1"
    ),
    Contestant(
        "ffcv", "FFCV", "other", threads.ffcv, ("ffcv",), "pip install ffcv, beside OpenCV's headers",
        "one view; crop and flip only",
    ),
    Contestant(
        "decode-only", "decode only", "limit", threads.decode_only, note="the torch backend's decoder, in full"
    ),
)  # fmt: skip
CONTESTANTS = {contestant.name: contestant for contestant in _EVERYONE}
"""All of them by name, in the order in which they are measured."""
