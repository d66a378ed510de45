from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastmoco.checkpoints import checkpoint, saving
from fastmoco.checkpoints.checkpoint import CheckpointError
from fastmoco.config import ConfigError
from fastmoco.flags import flag
from fastmoco.model.dictionary import Batch
from fastmoco.model.end_to_end import InBatch
from fastmoco.model.memory_bank import MemoryBank, nth_absent
from fastmoco.recipes import recipe
from fastmoco.trainer.data import Data, check_samples
from fastmoco.trainer.resume import check_compatible
from fastmoco.trainer.schedule import momentum_key_at
from fastmoco.trainer.step import TrainStep
from pipelines import TwoViews

MECHANISMS = ["queue", "end-to-end", "memory-bank"]
SAMPLES = 50


def small(**changes):
    shape = {"arch": "resnet10", "batch_size": 6, "queue_size": 20, "image_size": 32, "precision": "fp32", "lr": 0.01}
    return replace(recipe("demo"), **{**shape, **changes})


def start(config, steps=4):
    return TrainStep(config, torch.device("cpu"), steps, SAMPLES)


def batch(step, count=6):
    generator = torch.Generator().manual_seed(step)
    views = torch.randn(2, count, 3, 32, 32, generator=generator)
    ids = torch.randperm(SAMPLES, generator=generator)[:count]
    return TwoViews(*(v.contiguous(memory_format=torch.channels_last) for v in views), ids)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_four_steps_equal_two_a_checkpoint_and_two(tmp_path, mechanism):
    config = small(mechanism=mechanism, momentum_key_schedule="cosine")
    whole, cut = start(config), start(config)
    losses = [whole(batch(n), n).loss.item() for n in range(4)]
    for n in range(2):
        cut(batch(n), n)
    saving.save(tmp_path, {"progress": {"step": 2}, **cut.state()}, keep=1)
    torch.manual_seed(99)
    again = TrainStep(replace(config, seed=0), torch.device("cpu"), 4, SAMPLES)
    again.load_state(checkpoint.newest(tmp_path)[1])
    assert [again(batch(n), n).loss.item() for n in (2, 3)] == losses[2:]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    parts = {"queue": {"key_encoder", "queue"}, "end-to-end": {"key_encoder"}, "memory-bank": {"memory_bank"}}
    assert set(whole.state()) == {"query_encoder", "optimiser", "scaler"} | parts[mechanism]


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize(("count", "keys"), [(2, 1), (5, 3), (7, 100)])
def test_any_batch_and_any_number_of_keys_will_do(mechanism, count, keys):
    """Including fewer keys than images, and more keys than samples in the set."""
    step = start(small(mechanism=mechanism, batch_size=count, queue_size=keys))
    for n in range(2):
        result = step(batch(n, count), n)
        assert torch.isfinite(result.loss) and 0 <= result.accuracy <= 1
    if mechanism == "queue":
        assert step.model.dictionary.pointer.item() == 2 * count % keys
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in step.model.parameters())


def test_a_batch_of_all_samples_leaves_the_bank_no_negatives():
    config = small(mechanism="memory-bank", batch_size=50)
    check_samples(Data("here", 51, "", lambda: None), config)
    with pytest.raises(ConfigError, match=r"--batch-size 50 is all samples of here.*use a smaller batch"):
        check_samples(Data("here", 50, "", lambda: None), config)
    check_samples(Data("here", 50, "", lambda: None), small(batch_size=50))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mechanism": "memory-bank", "symmetric": True}, "encodes no keys; give --no-symmetric"),
        ({"mechanism": "memory-bank", "stream": "a.tar"}, "index the tars with fastmoco index and use --shards"),
        ({"batch_norm": "sync", "bn_splits": 2}, "--bn-splits 2 splits the batch that --batch-norm sync joins"),
        ({"batch_norm_kernel": "fused", "compile": True}, "both fuse BatchNorm"),
        ({"bank_momentum": 1.0}, "--bank-momentum is 1.0"),
        ({"check_every": -1}, "--check-every is -1"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        small(**change)


def test_one_image_a_rank_is_enough_for_synchronised_batchnorm_alone():
    assert small(batch_size=4, batch_norm="sync").per_rank_batch(4) == 1
    with pytest.raises(ConfigError, match="use at least 8"):
        small(batch_size=4, batch_norm="plain").per_rank_batch(4)


def test_another_mechanism_is_another_run():
    config = small()
    state = {"config": config.to_dict(), "data": {"digest": "a", "samples": SAMPLES}}
    for name in (
        "mechanism",
        "symmetric",
        "batch_norm",
        "momentum_key_schedule",
        "bank_momentum",
        "check_every",
        "init",
    ):
        del state["config"][name]  # as in a checkpoint older than these settings
    check_compatible("old.pt", state, replace(config, symmetric=True, check_every=7), "a")
    for change in ({"mechanism": "end-to-end"}, {"batch_norm": "sync"}):
        with pytest.raises(CheckpointError, match=f"{flag(next(iter(change)))} was"):
            check_compatible("old.pt", state, replace(config, **change), "a")


def test_the_symmetric_loss_is_the_mean_of_both_directions_and_the_queue_takes_both_keys():
    config, views = small(lr=1e-9), batch(0)
    swapped = TwoViews(views.key, views.query, views.ids)
    there, back, both = (start(replace(config, symmetric=s)) for s in (False, False, True))
    single = [step(v, 0).loss.item() for step, v in ((there, views), (back, swapped))]
    assert both(views, 0).loss.item() == pytest.approx(sum(single) / 2, rel=1e-5)
    keys = both.model.dictionary.queue_KD[:12]
    expected = torch.cat([step.model.dictionary.queue_KD[:6] for step in (there, back)])
    torch.testing.assert_close(keys, expected)


def test_the_momentum_rises_to_one_by_half_a_cosine():
    config = small(momentum_key=0.99, momentum_key_schedule="cosine")
    values = [momentum_key_at(config, step, 100) for step in (0, 50, 100)]
    assert values == pytest.approx([0.99, 0.995, 1.0])
    assert momentum_key_at(replace(config, momentum_key_schedule="constant"), 50, 100) == 0.99


def test_gradients_reach_both_encoders_end_to_end_and_they_part():
    step = start(small(mechanism="end-to-end", lr=0.05))
    step(batch(0), 0)
    pairs = list(zip(step.model.encoder.parameters(), step.model.key_encoder.parameters(), strict=True))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for pair in pairs for p in pair)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_in_batch_contrast_has_gradients_for_keys():
    query, key = (F.normalize(torch.randn(4, 5, dtype=torch.float64), dim=1).requires_grad_() for _ in range(2))

    def loss(q, k):
        return InBatch().contrast(q, k, Batch(slice(1, 3), 0), 0.3)[0]

    assert torch.autograd.gradcheck(loss, (query[:2], key))
    _, hit = InBatch().contrast(key[1:3].detach(), key.detach(), Batch(slice(1, 3), 0), 0.3)
    assert hit.all()


@pytest.mark.parametrize("count", [1, 4, 9])
def test_negatives_are_the_absent_ones_in_order(count):
    rng = np.random.default_rng(count)
    for _ in range(30):
        ids = torch.from_numpy(rng.integers(10, size=count))  # with repetitions
        absent = [n for n in range(10) if n not in ids.tolist()]
        places = torch.arange(10 - count)
        assert nth_absent(places, ids, 10).tolist() == absent[: 10 - count]


def test_bank_draws_depend_on_seed_and_step_and_leave_the_batch_out():
    bank, ids = MemoryBank(50, 400, 8, 0.5, seed=3), torch.tensor([4, 9, 9, 49])
    drawn = bank.drawn(ids, 7)
    assert torch.equal(drawn, bank.drawn(ids, 7)) and not torch.equal(drawn, bank.drawn(ids, 8))
    assert not torch.equal(drawn, MemoryBank(50, 400, 8, 0.5, seed=4).drawn(ids, 7))
    assert not set(drawn.tolist()) & {4, 9, 49} and len(set(drawn.tolist())) > 40


def test_a_sample_twice_in_a_batch_is_stored_once():
    bank, features = MemoryBank(5, 2, 3, 0.25, seed=0), F.normalize(torch.randn(3, 3), dim=1)
    before = bank.bank_MD.clone()
    bank.update(features, Batch(slice(0, 3), 0, torch.tensor([4, 1, 4])))
    expected = F.normalize(0.25 * before[[4, 1]] + 0.75 * features[:2], dim=1)
    torch.testing.assert_close(bank.bank_MD[[4, 1]], expected)
    assert torch.equal(bank.bank_MD[[0, 2, 3]], before[[0, 2, 3]])
    assert bank.fill() == pytest.approx(3 / 5)


@pytest.mark.parametrize(
    ("mechanism", "said"),
    [
        ("queue", None),
        ("end-to-end", "negatives are the batch's other 31: --queue-size and --momentum-key have no effect"),
        ("memory-bank", "--momentum-key has no effect"),
    ],
)
def test_the_log_says_which_settings_a_mechanism_leaves_unused(shard_sets, tmp_path, in_process, mechanism, said):
    sizes = ["--arch", "resnet10", "--image-size", "32", "--batch-size", "32", "--queue-size", "64"]
    run = ["--steps", "1", "--out", tmp_path / "run", "--mechanism", mechanism]
    log = in_process("-m", "fastmoco.train", "--shards", shard_sets / "train", *sizes, *run).stderr
    assert "no effect" not in log if said is None else said in log
