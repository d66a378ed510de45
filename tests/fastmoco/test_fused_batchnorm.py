"""Encoders with the fused BatchNorm equal those with torch's."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torchvision.models.resnet import BasicBlock, Bottleneck

from fastmoco.config import Config
from fastmoco.model.batchnorm import split_batchnorm
from fastmoco.model.encoders import _BUILDERS, Encoder, WideResNet
from fastmoco.model.fused_batchnorm import FusedBatchNorm2d, fuse_batchnorm
from fastmoco.model.moco import MoCo


@pytest.mark.parametrize(("block", "groups"), [(BasicBlock, 1), (BasicBlock, 2), (Bottleneck, 1)])
def test_a_fused_encoder_is_the_same_encoder(monkeypatch, block, groups):
    """Features, gradients and running statistics, in training and evaluation."""
    monkeypatch.setitem(_BUILDERS, "resnet10", partial(WideResNet, 1 / 8, block, [1, 2, 1, 1]))
    torch.manual_seed(0)
    plain = Encoder("resnet10", "linear", 8)
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias)
    fused = fuse_batchnorm(copy.deepcopy(plain), groups).double()
    plain = (split_batchnorm(plain, groups) if groups > 1 else plain).double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    for ours, theirs in ((fused(images), plain(images)), (fused.eval()(images), plain.eval()(images))):
        torch.testing.assert_close(ours, theirs)
        for encoder, features in ((fused, ours), (plain, theirs)):
            encoder.zero_grad()
            features.square().sum().backward()
        for (name, a), b in zip(fused.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
    assert list(fused.state_dict()) == list(plain.state_dict())
    for (name, a), b in zip(fused.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")


def test_the_setting_fuses_both_encoders():
    model = MoCo(Config(arch="resnet10", queue_size=4, batch_norm_kernel="fused", bn_splits=4))
    for encoder in (model.encoder, model.key_encoder):
        assert encoder is not None
        norms = [module for module in encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert len(norms) == 12 and all(isinstance(norm, FusedBatchNorm2d) and norm.groups == 4 for norm in norms)
        assert not [module for module in encoder.backbone.layer1 if isinstance(module, torch.nn.ReLU)]
    model.load_state(MoCo(Config(arch="resnet10", queue_size=4)).state())
