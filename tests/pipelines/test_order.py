"""EpochOrder: a permutation, cut alike for all ranks, that needs no memory and starts anywhere."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines import EpochOrder
from tests.support.memory import peak_memory


def _epoch(samples, batch, world=1, **place):
    """Ids of all ranks as [step, rank, B]."""
    orders = [EpochOrder(samples, batch, rank, world, **place) for rank in range(world)]
    assert len({order.steps for order in orders}) == 1
    return np.array([[order.ids(step) for order in orders] for step in range(orders[0].steps)])


@pytest.mark.parametrize("samples", [1, 2, 3, 5, 7, 16, 17, 97, 1000, 1009, 4096])
def test_no_id_comes_twice_and_only_the_remainder_is_left_over(samples):
    for batch in {-(-samples // 50), min(samples, 3 + samples // 100), samples}:
        for epoch in (0, 1):
            ids = _epoch(samples, batch, seed=5, epoch=epoch).ravel()
            assert len(np.unique(ids)) == len(ids) == samples // batch * batch
            assert ids.min() >= 0
            assert ids.max() < samples


def test_the_global_batch_does_not_depend_on_the_world_size():
    alone = _epoch(1009, 24)
    for world in (2, 3, 8):
        np.testing.assert_array_equal(_epoch(1009, 24, world).reshape(alone.shape), alone)


def test_left_over_ids_differ_from_epoch_to_epoch():
    left = [set(range(100)) - set(_epoch(100, 32, epoch=epoch).ravel().tolist()) for epoch in range(20)]
    assert all(len(ids) == 4 for ids in left)
    assert len({frozenset(ids) for ids in left}) > 15
    assert len(set.union(*left)) > 40


def test_seeds_and_epochs_give_other_orders():
    orders = {tuple(_epoch(50, 50, seed=seed, epoch=epoch).ravel()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@pytest.mark.parametrize("samples", [5, 7, 12])
def test_every_id_is_as_likely_at_every_place(samples):
    rounds = 2000
    counts = np.zeros((samples, samples))
    for epoch in range(rounds):
        counts[np.arange(samples), EpochOrder(samples, samples, epoch=epoch).ids(0)] += 1
    expected = rounds / samples
    freedom = (samples - 1) ** 2
    # mean `freedom`, standard deviation sqrt(2 * freedom); five of them
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)


def test_batches_of_a_sorted_set_mix_its_classes_as_random_sampling_does():
    samples, batch, classes = 10_000, 100, 10
    labels = np.arange(samples) * classes // samples  # sorted by class
    ids = _epoch(samples, batch).reshape(-1, batch)
    counts = np.array([np.bincount(labels[row], minlength=classes) for row in ids])
    # hypergeometric variance of a class's count in a batch: n p (1 - p) (N - n) / (N - 1)
    variance = batch * 0.1 * 0.9 * (samples - batch) / (samples - 1)
    # 1,000 counts: the variance's standard error is about 4.5 %; five of them
    assert counts.var() == pytest.approx(variance, rel=0.23)
    # neighbours in an epoch are unrelated
    flat = ids.ravel()
    assert abs(np.corrcoef(flat[:-1], flat[1:])[0, 1]) < 0.05


def test_a_billion_samples_take_no_more_memory_than_a_million():
    peaks = []
    for samples in (10**6, 10**9):
        order = EpochOrder(samples, 1024 * 256, rank=1023, world_size=1024, epoch=3)
        with peak_memory() as peak:
            ids = order.ids(order.steps - 1)
        peaks.append(peak.bytes)
        assert len(np.unique(ids)) == 256
        assert ids.max() < samples
    assert peaks[1] < 2 * peaks[0] < 100_000  # a stored permutation would take 8 MB and 8 GB


def test_the_order_is_the_one_that_checkpoints_were_written_under():
    """A run resumed in the middle of an epoch would otherwise repeat some images and miss others."""
    order = EpochOrder(1009, 12, rank=1, world_size=2, seed=7, epoch=3)
    assert order.ids(5).tolist() == [604, 873, 47, 894, 157, 437]
    order = EpochOrder(10**9, 8, seed=1 << 40, epoch=2)
    assert order.ids(10**8).tolist() == [
        *(47023204, 452760101, 717496435, 806038410, 336251518, 504645592, 135222407, 922326661),
    ]


def test_stand_ins_are_the_other_ids_of_the_rank():
    order = EpochOrder(100, 20, rank=1, world_size=4)
    own = {(step, slot): int(order.ids(step)[slot]) for step in range(order.steps) for slot in range(order.batch)}
    stand_ins = [order.substitute(2, 3, attempt) for attempt in range(1, order.steps * order.batch)]
    assert sorted(stand_ins) == sorted(set(own.values()) - {own[2, 3]})
    assert stand_ins[0] == own[3, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1000, 250, 0, 4), "global batch 250 is not divisible by 4 ranks; use 248 or 252"),
        ((1000, 2, 0, 4), "use 4"),
        ((100, 128, 0, 1), "100 samples do not fill one global batch of 128; use a batch of at most 100"),
        ((3, 4, 0, 4), "3 samples do not fill one global batch of 4; use at most 3 ranks or pack more images"),
        ((100, 32, 4, 4), "rank 4 is not one of 4 ranks"),
        ((100, 0, 0, 1), "holds no image"),
        ((100, 10, 0, 1, 0, -1), "epoch -1"),
    ],
)
def test_errors_say_what_to_use(arguments, message):
    with pytest.raises(ValueError, match=message):
        EpochOrder(*arguments)


def test_steps_outside_the_epoch_are_refused():
    with pytest.raises(IndexError, match="steps 0 to 2"):
        EpochOrder(100, 32).ids(3)


def test_the_global_order_names_no_shards_to_fetch_ahead():
    """It reads from all shards at every step, so what is fetched ahead are the images themselves."""
    assert EpochOrder(100, 10).coming_shards(3) == []
