"""The tables of docs/evaluation.md say in which layouts each family of encoders is written and read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastmoco.layouts.encoders import read_encoder
from fastmoco.layouts.files import LayoutError
from fastmoco.model.encoders import backbone
from tests.support.family_table import FAMILIES, LARGE, READ, WRITTEN, head, rows

pytest.importorskip("timm")

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.long) if name in LARGE else name for name in FAMILIES]
)
def test_the_tables_hold_each_family(tmp_path, family):
    page = PAGE.read_text(encoding="utf-8")
    for columns, row in zip((WRITTEN, tuple(READ)), rows(family, tmp_path), strict=True):
        assert row in page.partition(head(columns))[2].partition("\n\n")[0].splitlines()


def test_a_name_of_timm_in_a_file_is_that_of_its_encoder(tmp_path):
    """As timm's training records it; a tag names weights of the same encoder."""
    tensors = backbone("timm:test_vit", image_size=32).state_dict()
    torch.save({"arch": "test_vit", "state_dict": tensors}, tmp_path / "trained.pth.tar")
    for arch in (None, "timm:test_vit", "timm:test_vit.r160_in1k"):
        weights = read_encoder(tmp_path / "trained.pth.tar", arch)
        assert (weights.arch, weights.image_size) == (arch or "timm:test_vit", 32)
    with pytest.raises(LayoutError, match="holds a timm:test_vit, not a timm:test_vit2; give --arch timm:test_vit"):
        read_encoder(tmp_path / "trained.pth.tar", "timm:test_vit2")
    torch.save({"arch": "my_vit", "state_dict": tensors}, tmp_path / "own.pth.tar")
    with pytest.raises(LayoutError, match="has an encoder 'my_vit'; known: resnet10"):
        read_encoder(tmp_path / "own.pth.tar")
