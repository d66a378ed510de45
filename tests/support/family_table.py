"""Write an encoder of each family in every layout, and read it from the layouts of other programs.

`python -m tests.support.family_table` prints the tables of docs/evaluation.md in Markdown.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import torch

from fastmoco.architectures import by_timm
from fastmoco.checkpoints import checkpoint
from fastmoco.export import Args, Format, run
from fastmoco.layouts.encoders import read_encoder
from fastmoco.model import encoders
from fastmoco.model.moco import MoCo
from fastmoco.model.timm_encoders import timm_name
from fastmoco.recipes import moco_v2
from shards.errors import UserError
from tests.support.runs import narrow_resnet10
from tests.support.weight_files import CONTENTS, Tensors, write

FAMILIES = {
    "ResNet of torchvision": ("resnet18", 32),
    "ResNet": ("timm:test_resnet", 32),
    "RegNet": ("timm:regnetx_002", 32),
    "EfficientNet": ("timm:test_efficientnet", 32),
    "ConvNeXt": ("timm:test_convnext", 32),
    "ViT": ("timm:test_vit", 32),
    "Swin": ("timm:swin_tiny_patch4_window7_224", 56),
    "ViT of MoCo v3": ("moco_v3_vit_small", 32),
}
"""An encoder of each family, and the side of its images."""
LARGE = ("RegNet", "Swin", "ViT of MoCo v3")
"""Families of which timm has no encoder for tests."""
WRITTEN: tuple[Format, ...] = get_args(Format)
READ = {
    "state dictionary": "timm.safetensors",
    "timm's training": "timm training, with average.pth.tar",
    "original MoCo": "original MoCo, whole.pth.tar",
    "moco-v3": "moco-v3.pth.tar",
    "DINO": "DINO.pth",
    "lightly": "lightly, benchmark.ckpt",
}
"""Names of CONTENTS by the layout."""


@contextmanager
def small() -> Iterator[None]:
    """Within it resnet18 is a narrow encoder with fewer blocks: of ResNets, names alone matter here."""
    with mock.patch.dict(encoders._BUILDERS, resnet18=narrow_resnet10(1 / 4)):
        yield


def rows(family: str, folder: Path) -> tuple[str, str]:
    """The family's row in the table of layouts written, and in that of layouts read."""
    arch, side = FAMILIES[family]
    config = replace(moco_v2(), arch=arch, image_size=side, queue_size=8, feature_dim=8)
    with small():
        torch.manual_seed(0)
        model = MoCo(config)
        q = {name: value.clone() for name, value in model.encoder.backbone.state_dict().items()}
        k = {name: value + 1 for name, value in q.items()}
        progress = {"epoch": 1, "step": 8, "samples": 64, "window": {}}
        state = {name: module.state_dict() for name, module in model.parts().items()}
        state |= {"format": checkpoint.FORMAT, "config": config.to_dict(), "progress": progress}
        state["data"] = {"digest": "a" * 64, "samples": 64}
        torch.save(state, folder / "checkpoint.pt")
        written = [_written(folder / "checkpoint.pt", layout) for layout in WRITTEN]
        read = [
            _read(write(_named(CONTENTS[name](q, k), name, arch), folder / name), arch, side, q)
            for name in READ.values()
        ]
    first = f"{family} (`{arch}`)"
    return _row(first, written), _row(first, read)


def _written(path: Path, layout: Format) -> str:
    suffix = {"detectron2": ".pkl", "hf-hub": ""}.get(layout, ".pth")
    try:
        run(Args(out=path.with_name(f"{layout}{suffix}"), checkpoint=path, format=layout))
    except UserError:
        return "–"
    return "yes"


def _named(content: Any, name: str, arch: str) -> Any:
    """A file's content with the encoder's name as the project has it, where it records one."""
    if isinstance(content, dict) and "arch" in content:
        of_v3 = name.startswith("moco-v3") and arch == "moco_v3_vit_small"
        content["arch"] = "vit_small" if of_v3 else timm_name(arch)[0] if by_timm(arch) else arch
    return content


def _read(path: Path, arch: str, side: int, wanted: Tensors) -> str:
    for said, given in {
        "yes": {}, "`--arch`": {"arch": arch}, "`--image-size`": {"image_size": side},
        "`--arch`, `--image-size`": {"arch": arch, "image_size": side},
    }.items():  # fmt: skip
        try:
            tensors = read_encoder(path, **given).tensors
        except UserError:
            continue
        assert tensors.keys() == wanted.keys()
        assert all(torch.equal(tensors[name], value) for name, value in wanted.items()), path
        return said
    return "–"


def _row(first: str, cells: list[str]) -> str:
    return f"| {' | '.join([first, *cells])} |"


def head(columns: tuple[str, ...]) -> str:
    """The first two lines of a table."""
    return _row("encoder", list(columns)) + "\n" + "| --- |" + " --- |" * len(columns)


def main() -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory() as folder:
        made = []
        for number, family in enumerate(FAMILIES):
            place = Path(folder, str(number))
            place.mkdir()
            made.append(rows(family, place))
    for columns, lines in zip((WRITTEN, tuple(READ)), zip(*made, strict=True), strict=True):
        print("\n".join([head(columns), *lines, ""]))


if __name__ == "__main__":
    main()
