from __future__ import annotations

import pytest
import torch
import torchvision

from fastmoco.config import ARCHITECTURES, Config, ConfigError
from fastmoco.model.encoders import _BUILDERS, backbone
from fastmoco.model.moco import MoCo

PAPER = {"resnet50": 24, "resnet101": 43, "resnext50_32x8d": 46, "resnet50_w2": 94, "resnet50_w4": 375}


@pytest.mark.parametrize("arch", PAPER)
def test_parameters_are_those_of_the_paper(arch):
    """arXiv 1911.05722, section 4.1 and table 1: millions without the classifier, rounded."""
    with torch.device("meta"):
        net = backbone(arch)
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    assert round(millions) == PAPER[arch] or millions == pytest.approx(PAPER[arch], rel=0.01)
    assert net(torch.zeros(2, 3, 64, 64, device="meta")).shape == (2, net.out_dim)


def test_every_resnet_of_torchvision_is_there():
    names = {name for name in torchvision.models.list_models(torchvision.models) if "resne" in name}
    assert names <= set(ARCHITECTURES)
    assert tuple(_BUILDERS) == ARCHITECTURES  # the names alone, known without torch


def test_wide_ones_are_wide_in_every_channel():
    with torch.device("meta"):
        plain, wide = backbone("resnet50"), backbone("resnet50_w2")
    for (name, a), b in zip(plain.named_parameters(), wide.parameters(), strict=True):
        shape = [a.shape[0] * 2, *a.shape[1:]]
        if a.dim() == 4 and name != "conv1.weight":
            shape[1] *= 2
        assert list(b.shape) == shape, name


def test_training_begins_with_torchvisions_weights(tmp_path):
    theirs = torchvision.models.resnet18()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    model = MoCo(Config(arch="resnet18", queue_size=4))
    model.load_torchvision(tmp_path / "weights.pth")
    theirs.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    for encoder in (model.encoder, model.key_encoder):
        torch.testing.assert_close(encoder.backbone(images), theirs(images))
    assert all(
        torch.equal(a, b) for a, b in zip(model.encoder.parameters(), model.key_encoder.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda s: {**s, "extra": torch.zeros(1)}, "extra is too many, 1 in all"),
        (lambda s: {k: v for k, v in s.items() if k != "bn1.bias"}, "bn1.bias is missing"),
        (
            lambda s: {**s, "conv1.weight": torch.zeros(2, 2)},
            r"conv1.weight has the shape \[2, 2\], not \[64, 3, 7, 7\]",
        ),
        (lambda s: [1, 2], "is no state_dict of tensors"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, content, message):
    torch.save(content(torchvision.models.resnet18().state_dict()), tmp_path / "weights.pth")
    model = MoCo(Config(arch="resnet18", queue_size=4))
    with pytest.raises(ConfigError, match=message):
        model.load_torchvision(tmp_path / "weights.pth")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    model = MoCo(Config(arch="resnet10", queue_size=4))
    with pytest.raises(ConfigError, match=r"nowhere\.pth cannot be read"):
        model.load_torchvision(tmp_path / "nowhere.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ConfigError, match=r"text\.pth cannot be read"):
        model.load_torchvision(tmp_path / "text.pth")
