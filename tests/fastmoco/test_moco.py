from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from fastmoco.architectures import ARCHITECTURES
from fastmoco.model.batchnorm import SplitBatchNorm2d, split_batchnorm
from fastmoco.model.encoders import Encoder, backbone
from fastmoco.model.moco import MoCo
from fastmoco.model.shuffle_bn import exchange, permutation
from fastmoco.recipes import recipe
from fastmoco.trainer.step import TrainStep
from pipelines import TwoViews


def small(**changes):
    base = replace(recipe("demo"), arch="resnet10", batch_size=8, queue_size=20, image_size=32, precision="fp32")
    return replace(base, **changes)


def views(step, batch=8, size=32, dtype=torch.float32):
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(2, batch, 3, size, size, generator=generator, dtype=dtype)
    query, key = (view.contiguous(memory_format=torch.channels_last) for view in images)
    return TwoViews(query, key, torch.arange(batch))


def papers_steps(model, config, batches, lrs):
    """The pseudo-code of the paper (arXiv 1911.05722, algorithm 1), NCHW, with all logits, and torch's own SGD."""
    query_encoder, key_encoder = copy.deepcopy(model.encoder), copy.deepcopy(model.key_encoder)
    query_encoder.to(memory_format=torch.contiguous_format)
    key_encoder.to(memory_format=torch.contiguous_format)
    queue_DK, pointer, losses = model.dictionary.queue_KD.clone().T, 0, []
    optimiser = torch.optim.SGD(query_encoder.parameters(), 1.0, momentum=0.9, weight_decay=config.weight_decay)
    for batch, lr in zip(batches, lrs, strict=True):
        q = F.normalize(query_encoder(batch.query.contiguous()), dim=1)
        with torch.no_grad():
            for theta_k, theta_q in zip(key_encoder.parameters(), query_encoder.parameters(), strict=True):
                theta_k.copy_(config.momentum_key * theta_k + (1 - config.momentum_key) * theta_q)
            k = F.normalize(key_encoder(batch.key.contiguous()), dim=1)
        l_pos = torch.einsum("nc,nc->n", q, k)[:, None]
        l_neg = torch.einsum("nc,ck->nk", q, queue_DK)
        logits = torch.cat([l_pos, l_neg], dim=1) / config.temperature
        loss = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))
        optimiser.param_groups[0]["lr"] = lr
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        for column in k:
            queue_DK = torch.cat([queue_DK[:, :pointer], column[:, None], queue_DK[:, pointer + 1 :]], dim=1)
            pointer = (pointer + 1) % queue_DK.shape[1]
    return losses, query_encoder, key_encoder, queue_DK.T, pointer


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_six_steps_equal_the_papers_pseudo_code(head):
    config = small(head=head, lr=0.05)
    step = TrainStep(config, torch.device("cpu"), total_steps=6)
    step.model.double()  # in float32, BatchNorm over 8 images amplifies rounding a hundredfold per step
    batches = [views(n, dtype=torch.float64) for n in range(6)]
    expected = papers_steps(step.model, config, batches, [step.lr(n) for n in range(6)])
    losses = [step(batch, n).loss.item() for n, batch in enumerate(batches)]
    assert losses == pytest.approx(expected[0], rel=1e-9)
    torch.testing.assert_close(step.model.dictionary.queue_KD, expected[3], rtol=0, atol=1e-9)
    assert step.model.dictionary.pointer.item() == expected[4] == 48 % 20
    for ours, theirs in ((step.model.encoder, expected[1]), (step.model.key_encoder, expected[2])):
        for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


def test_key_encoder_has_no_gradient_and_follows_slowly():
    step = TrainStep(small(momentum_key=0.9, lr=0.1), torch.device("cpu"), total_steps=2)
    start = [p.clone() for p in step.model.key_encoder.parameters()]
    step(views(0), 0)
    moved = [p.clone() for p in step.model.encoder.parameters()]
    step(views(1), 1)
    assert all(p.grad is None for p in step.model.key_encoder.parameters())
    for key, first, query in zip(step.model.key_encoder.parameters(), start, moved, strict=True):
        torch.testing.assert_close(key, 0.9 * first + 0.1 * query, rtol=1e-5, atol=1e-7)


def test_split_batchnorm_equals_separate_batchnorms():
    split = SplitBatchNorm2d(3, splits=4)
    plain = torch.nn.BatchNorm2d(3)
    x = torch.randn(8, 3, 5, 5)
    expected = torch.cat([copy.deepcopy(plain)(part) for part in x.chunk(4)])
    torch.testing.assert_close(split(x), expected)
    means = torch.stack([part.mean((0, 2, 3)) for part in x.chunk(4)]).mean(0)
    torch.testing.assert_close(split.running_mean, 0.1 * means)
    split.eval()
    torch.testing.assert_close(split(x), F.batch_norm(x, split.running_mean, split.running_var))


def test_bn_splits_shuffle_the_keys_only_and_put_them_back():
    config = small(bn_splits=2)
    model = MoCo(config).train()
    batch = views(3)
    order = permutation(config.seed, 6, 8, groups=2)
    keys = model.encode_keys(batch.key, step=6)
    expected = torch.empty_like(keys)
    with torch.no_grad():
        expected[order] = F.normalize(model.key_encoder(batch.key[order]), dim=1)
        straight = F.normalize(model.key_encoder(batch.key), dim=1)
    torch.testing.assert_close(keys, expected)
    assert (keys - straight).abs().max() > 1e-3  # other groups, other statistics


def test_split_batchnorm_replaces_every_one():
    net = split_batchnorm(Encoder("resnet18", "mlp", 16), 2)
    kinds = {type(m) for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert kinds == {SplitBatchNorm2d}


def test_exchange_on_one_device_permutes():
    images, order = views(0).key, permutation(0, 0, 8, groups=2)
    assert torch.equal(exchange(images, order), images[order])


def test_the_whole_encoder_runs_channels_last():
    step = TrainStep(small(), torch.device("cpu"), total_steps=1)
    seen = []
    for module in step.model.encoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _m, _i, out: seen.append(out))
    step(views(0), 0)
    assert len(seen) == 12
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in seen)


@pytest.mark.parametrize(("arch", "millions", "dim"), [("resnet18", 11.2, 512), ("resnet50", 23.5, 2048)])
def test_backbones_have_torchvisions_weights_and_no_classifier(arch, millions, dim):
    net = backbone(arch)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
    assert net(torch.zeros(2, 3, 64, 64)).shape == (2, dim)
    import torchvision

    theirs = torchvision.models.get_model(arch)
    missing, unexpected = theirs.load_state_dict(net.state_dict(), strict=False)
    assert missing == ["fc.weight", "fc.bias"] and unexpected == []


@pytest.mark.parametrize("arch", ["resnet10", "resnet50"])
def test_blocks_begin_as_the_identity_where_asked(arch):
    for wanted in (False, True):
        net = backbone(arch, zero_init_residual=wanted)
        last = [getattr(m, "bn3", None) or m.bn2 for m in net.modules() if isinstance(m, BasicBlock | Bottleneck)]
        assert len(last) in (4, 16) and all(bool((bn.weight == 0).all()) is wanted for bn in last)
    config = replace(small(), zero_init_residual=True)
    assert torch.all(TrainStep(config, torch.device("cpu"), 1).model.encoder.backbone.layer1[0].bn2.weight == 0)


def test_unknown_architecture_is_named():
    with pytest.raises(ValueError, match=f"unknown architecture 'vgg'; known: {ARCHITECTURES[0]}"):
        backbone("vgg")
