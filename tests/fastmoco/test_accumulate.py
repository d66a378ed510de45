"""--accumulate N: micro-batches equal one batch with --bn-splits N, to rounding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastmoco.checkpoints.checkpoint import CheckpointError
from fastmoco.config import ConfigError
from fastmoco.model import encoders
from fastmoco.recipes import recipe
from fastmoco.trainer.resume import check_compatible
from fastmoco.trainer.step import TrainStep
from pipelines import TwoViews
from tests.support.runs import narrow_resnet10

STEPS, BATCH, SAMPLES = 3, 8, 40
BASE = replace(recipe("demo"), batch_size=BATCH, image_size=32, queue_size=29, precision="fp32", lr=0.05)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setitem(encoders._BUILDERS, "resnet10", narrow_resnet10(1 / 8))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for so little work, others cost more than they save
    yield
    torch.set_num_threads(threads)


def batch(step, dtype):
    generator = torch.Generator().manual_seed(step)
    ids = torch.randperm(SAMPLES, generator=generator)[:BATCH]
    views = torch.randn(2, BATCH, 3, 32, 32, generator=generator).to(dtype)
    return TwoViews(*(view.contiguous(memory_format=torch.channels_last) for view in views), ids)


def trained(steps=STEPS, dtype=torch.float64, **settings):
    train = TrainStep(replace(BASE, **settings), torch.device("cpu"), STEPS, SAMPLES)
    if dtype is torch.float64:  # in float32, BatchNorm over few images amplifies rounding at each step
        train.model.double()
    return train, [train(batch(step, dtype), step) for step in range(steps)]


def assert_equal(ours, theirs, tolerance):
    (one, figures), (other, wanted) = ours, theirs
    for ours, theirs in zip(figures, wanted, strict=True):
        for name in ("loss", "accuracy", "spread", "grad_norm"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=tolerance, atol=tolerance)
    ours, expected = state_of(one.model), state_of(other.model)
    assert ours.keys() == expected.keys()
    for name, tensor in ours.items():
        if "tracked" not in name:  # split BatchNorm does not count
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=tolerance, msg=name)


def state_of(model):
    """A model's state by the names that it has without torch.compile."""
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("accumulate", "settings"),
    [
        (2, {}),
        (4, {}),
        (4, {"symmetric": True}),
        (2, {"batch_norm": "plain"}),
        (2, {"mechanism": "memory-bank"}),
        (2, {"mechanism": "batch", "symmetric": True, "head": "mlp-bn", "head_width": 16, "predictor": "mlp-bn"}),
        (2, {"bn_splits": 2}),
        (2, {"bn_splits": 2, "batch_norm_kernel": "fused"}),
    ],
)
def test_micro_batches_equal_one_batch_with_as_many_batchnorm_groups(accumulate, settings):
    """Losses, accuracy, gradients, weights, running statistics, the queue and its pointer, or the bank."""
    whole = {**settings, "bn_splits": accumulate * settings.get("bn_splits", 1)}
    ours = trained(accumulate=accumulate, **settings)
    assert_equal(ours, trained(**whole), 1e-9)
    if "mechanism" not in settings:  # the queue
        keys = STEPS * BATCH * (2 if "symmetric" in settings else 1)
        assert ours[0].model.dictionary.pointer.item() == keys % 29


def test_synchronised_batchnorm_is_over_each_micro_batch():
    assert_equal(trained(accumulate=2, batch_norm="sync"), trained(bn_splits=2, batch_norm="plain"), 1e-9)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_micro_batches_in_half_precision(precision):
    """One step, as each part's gradient is rounded by itself; with fp16 the sum is unscaled once."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    (ours, (figures,)), (theirs, (expected,)) = (
        trained(1, dtype, precision=precision, **settings) for settings in ({"accumulate": 2}, {"bn_splits": 2})
    )
    assert figures.loss.item() == pytest.approx(expected.loss.item(), rel=1e-3)
    assert figures.grad_norm.item() == pytest.approx(expected.grad_norm.item(), rel=1e-2)
    for one, other in zip(ours.model.encoder.parameters(), theirs.model.encoder.parameters(), strict=True):
        assert (one - other).norm() <= 0.02 * ours.lr(0) * other.grad.norm() + 1e-6


def test_the_batch_is_divided_by_ranks_micro_batches_and_groups():
    config = replace(BASE, batch_size=250, accumulate=4, bn_splits=2)
    said = "--batch-size 250 is not divisible by 2 ranks × 4 micro-batches × 2 BN splits; use 240 or 256"
    with pytest.raises(ConfigError, match=said):
        config.per_rank_batch(2)
    assert replace(config, batch_size=256).per_rank_batch(2) == 128
    with pytest.raises(ConfigError, match="leaves one image to a BatchNorm group; use at least 16"):
        replace(BASE, batch_size=8, accumulate=8, batch_norm="sync").per_rank_batch(1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"accumulate": 0}, "--accumulate is 0; it must be at least 1"),
        ({"accumulate": 2, "mechanism": "end-to-end"}, "memory, too.*, or use --mechanism batch, whose"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        replace(BASE, **settings)


def test_a_run_continues_with_other_micro_batches_and_with_groups_in_their_place():
    state = {"config": replace(BASE, bn_splits=4).to_dict(), "data": {"digest": "a", "samples": SAMPLES}}
    del state["config"]["accumulate"]  # as in a checkpoint older than this setting
    changed = check_compatible("old.pt", state, replace(BASE, bn_splits=2, accumulate=2), "a")
    assert changed == {"accumulate": (1, 2), "bn_splits": (4, 2)}
    assert check_compatible("old.pt", state, replace(BASE, bn_splits=4, accumulate=2), "a") == {"accumulate": (1, 2)}
    with pytest.raises(CheckpointError, match="--bn-splits was 4, now 2"):
        check_compatible("old.pt", state, replace(BASE, bn_splits=2), "a")
