"""The loaders that `imgs_per_sec.py --peers` compares.

A contestant is a function from a `Work` to batches without end. All load the same images, produce the views of MoCo v2
(with the numbers of `pipelines.ViewSpec`) unless their note says otherwise, and deliver them normalised: in float32 on
a CPU, in float16 on a GPU. Each follows its library's documentation, with the settings that suit it best; comments give
the reasons.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from _peers import dataloader as loaders
from _peers import on_gpu, threads
from _peers.work import Batches, Work
from pipelines.choice import install


@dataclass(frozen=True)
class Contestant:
    """A way to load images.

    Attributes:
        name: name in `--only` and in the rows.
        label: name in the table.
        kind: `ours` and `peer` produce the same two views; `other` does less; `limit` only decodes.
        start: starts loading when the first batch is requested; closing the iterator stops it.
        modules: optional modules that it imports.
        install: command that installs them.
        note: remark on its figure.
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
        """What has to be installed first, in words; empty if nothing is missing."""
        absent = [module for module in self.modules if not _found(module)]
        return f"not installed ({', '.join(absent)}): {self.install}" if absent else ""


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


_BENCH = "pip install 'fastmoco[bench]'"
_ON_A_CPU = (
    Contestant("torch", "fastmoco, torch backend", "ours", threads.torch_backend),
    Contestant(
        "dali-cpu", "DALI's CPU backend", "peer", threads.dali, ("nvidia.dali",), install(),
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
        # by default albumentations does not antialias: the first is its usual speed, the second does the others' work
        "albumentations", "albumentations", "peer", loaders.albumentations, ("albumentations", "cv2"), _BENCH,
        "OpenCV; resize without antialiasing",
    ),
    Contestant(
        "albumentations-area", "albumentations, area", "peer", loaders.albumentations_area, ("albumentations", "cv2"),
        _BENCH, "OpenCV; antialiased, as in the other loaders",
    ),
    Contestant(
        "webdataset", "webdataset, torchvision", "peer", loaders.webdataset, note="tars, Pillow, torchvision v1"
    ),
    Contestant(
        # not a peer, as it does less: one view for each decode, without jitter and blur
        "ffcv", "FFCV", "other", threads.ffcv, ("ffcv",), "pip install ffcv, beside OpenCV's headers",
        "one view; crop and flip only",
    ),
    Contestant(
        "decode-only", "decode only", "limit", threads.decode_only, note="the torch backend's decoder, in full"
    ),
)  # fmt: skip
_ON_A_GPU = (
    Contestant("dali", "fastmoco, DALI backend", "ours", threads.dali, ("nvidia.dali",), install()),
    Contestant("torch", "fastmoco, torch backend", "ours", threads.torch_backend, note="decodes on the CPU"),
    Contestant(
        "dali-reader", "DALI's WebDataset reader and operators", "peer", on_gpu.dali_reader, ("nvidia.dali",),
        install(), "colours by DALI's color_twist",
    ),
    Contestant(
        "torchvision-nvjpeg", "nvJPEG, torchvision v2", "peer", on_gpu.torchvision_nvjpeg,
        note="files; transforms on the GPU, image by image",
    ),
    Contestant(
        "ffcv", "FFCV", "other", threads.ffcv, ("ffcv",), "pip install ffcv, beside OpenCV's headers",
        "one view; crop and flip only, on the CPU",
    ),
)  # fmt: skip
CONTESTANTS = {
    device: {contestant.name: contestant for contestant in all_of_them}
    for device, all_of_them in (("cpu", _ON_A_CPU), ("cuda", _ON_A_GPU))
}
"""All contestants by device and name, in the order in which they are measured."""
