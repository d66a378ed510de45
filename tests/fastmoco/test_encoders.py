from __future__ import annotations

import pickle

import pytest
import torch
import torchvision

from fastmoco.architectures import ARCHITECTURES
from fastmoco.layouts.encoders import read_encoder
from fastmoco.layouts.files import LayoutError
from fastmoco.model.encoders import _BUILDERS, backbone

PAPER = {"resnet50": 24, "resnet101": 43, "resnext50_32x8d": 46, "resnet50_w2": 94, "resnet50_w4": 375}


@pytest.mark.parametrize("arch", PAPER)
def test_parameters_are_those_of_the_paper(arch):
    """arXiv 1911.05722, section 4.1 and table 1: millions without the classifier, rounded."""
    with torch.device("meta"):
        net = backbone(arch)
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    assert round(millions) == PAPER[arch] or millions == pytest.approx(PAPER[arch], rel=0.01)
    assert net(torch.zeros(2, 3, 64, 64, device="meta")).shape == (2, net.out_dim)


def test_every_resnet_of_torchvision_is_available():
    names = {name for name in torchvision.models.list_models(torchvision.models) if "resne" in name}
    assert names <= set(ARCHITECTURES)
    assert tuple(_BUILDERS) == ARCHITECTURES  # a list of names that needs no torch


def test_wide_ones_are_wide_in_every_channel():
    with torch.device("meta"):
        plain, wide = backbone("resnet50"), backbone("resnet50_w2")
    for (name, a), b in zip(plain.named_parameters(), wide.parameters(), strict=True):
        shape = [a.shape[0] * 2, *a.shape[1:]]
        if a.dim() == 4 and name != "conv1.weight":
            shape[1] *= 2
        assert list(b.shape) == shape, name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda s: {**s, "extra": torch.zeros(1)}, "extra is unexpected, 1 in all; is --arch right?"),
        (lambda s: {k: v for k, v in s.items() if k != "bn1.bias"}, "bn1.bias is missing, 1 in all"),
        (
            lambda s: {**s, "conv1.weight": torch.zeros(2, 2)},
            r"conv1.weight has the shape \[2, 2\], not \[64, 3, 7, 7\]",
        ),
        (lambda s: {"epoch": 3}, "and no state dictionary of tensors; save model.state_dict"),
        (lambda s: [1, 2], "and no state dictionary of tensors; save model.state_dict"),
        (lambda s: {"format": "fastmoco-detect/1", "model": s}, "of the format fastmoco-detect/1, which holds no pre"),
        (
            lambda s: {"state_dict": {"encoder_q.conv1.weight": torch.zeros(1)}, "arch": "lenet5"},
            "has an encoder 'lenet5'",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, content, message):
    torch.save(content(torchvision.models.resnet18().state_dict()), tmp_path / "weights.pth")
    with pytest.raises(LayoutError, match=message):
        read_encoder(tmp_path / "weights.pth", "resnet18")


def flip_a_bit_of_a_tensor(data):
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("damage", [lambda b: b"no weights", lambda b: b"", lambda b: b[:-300], flip_a_bit_of_a_tensor])
def test_a_file_that_cannot_be_read_is_named(tmp_path, damage):
    path = tmp_path / "weights.pth"
    with pytest.raises(LayoutError, match=r"there is no file .*weights\.pth"):
        read_encoder(path, "resnet18")
    torch.save(backbone("resnet18").state_dict(), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(LayoutError, match=r"weights\.pth cannot be read: \S"):
        read_encoder(path, "resnet18")


def test_a_pickle_is_refused_without_running_it(tmp_path):
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps({"model": {}}))
    with pytest.raises(LayoutError, match=r"weights\.pkl is a pickle, which may run code"):
        read_encoder(tmp_path / "weights.pkl", "resnet18")
