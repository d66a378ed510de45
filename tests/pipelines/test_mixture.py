"""Several sets with weights in one epoch: how often each image comes, in which order, and with which views."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from pipelines import EpochOrder, PipelineError, PipelineOptions, ShardedOrder, ViewSpec, draw
from pipelines.order.mixture import Mixture, ids_of
from tests.support.memory import peak_memory

SHARDS = [[7, 0, 13, 20, 20], [31, 9, 20], [0, 11]]  # sizes of the shards of three sets: 60, 60 and 11 images
ENDS = np.cumsum([size for shards in SHARDS for size in shards])
SIZES = [sum(each) for each in SHARDS]
POLICIES = ["global", "sharded"]


def _orders(policy, weights, batch, epoch=0, world=1, seed=3, **shape):
    mixture = Mixture.of(SIZES, weights)
    place = {"seed": seed, "epoch": epoch, "mixture": mixture}
    samples = sum(SIZES) if mixture is None else mixture.samples
    if policy == "global":
        return [EpochOrder(samples, batch, rank, world, **place) for rank in range(world)]
    shape = {"lanes": 4, "window": 16} | shape
    return [ShardedOrder(samples, batch, rank, world, ends=ENDS, **place, **shape) for rank in range(world)]


def _epoch(*arguments, **options):
    """Entries of all ranks as [step, rank, B]."""
    orders = _orders(*arguments, **options)
    assert len({order.steps for order in orders}) == 1
    return np.array([[order.entries(step) for order in orders] for step in range(orders[0].steps)])


def _uses(policy, weights, epoch):
    """How often an epoch uses each image, the batch being one image so that none is left over but by rounding."""
    mixture = Mixture.of(SIZES, weights)
    places = np.arange(mixture.total(epoch))
    if policy == "global":
        entries = mixture.entries(places, 3, epoch)
    else:
        stops, sizes = mixture.pieces(ENDS, 3, epoch)
        entries = np.concatenate([np.arange(stop - size, stop) for stop, size in zip(stops, sizes, strict=True)])
    assert len(set(entries.tolist())) == len(entries) == len(places)
    # the uses of an image are numbered from 0 on
    uses = Counter(ids_of(entries).tolist())
    assert sorted(entries.tolist()) == sorted(i + (use << 48) for i, times in uses.items() for use in range(times))
    counts = np.array([uses[i] for i in range(sum(SIZES))])
    return np.split(counts, np.cumsum(SIZES)[:-1])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("weight", "epochs", "times"), [(0.5, 2, 1), (0.3, 10, 3), (1.5, 2, 3), (2.0, 1, 2), (0.9, 10, 9)]
)
def test_an_epoch_uses_the_images_of_a_set_as_often_as_its_weight_says(policy, weight, epochs, times):
    epoch_uses = [_uses(policy, (1.0, weight, weight), epoch) for epoch in range(2 * epochs)]
    whole, part = int(weight), Fraction(str(weight)) % 1
    for first, second, third in epoch_uses:
        assert (first == 1).all()
        for uses in (second, third):
            assert set(uses.tolist()) <= {whole, whole + (part > 0)}
        assert second.sum() == 60 * Fraction(str(weight))  # of 60 images, a whole number
        assert abs(third.sum() - 11 * weight) < 1
    # each image equally often in so many epochs, and again in the next ones
    for begin in (0, epochs):
        for number in (1, 2):
            total = sum(uses[number] for uses in epoch_uses[begin : begin + epochs])
            assert (total == times).all()
    if part:  # the next epochs have other parts
        parts = {epoch_uses[epoch][1].tobytes() for epoch in range(2 * epochs)}
        assert len(parts) > epochs


def test_the_other_half_comes_in_the_next_epoch():
    halves = [_epoch("global", (1.0, 0.5, 1.0), 101, epoch=epoch).ravel() for epoch in (4, 5)]
    of_second = [{i for i in half.tolist() if 60 <= i < 120} for half in halves]
    assert len(of_second[0]) == len(of_second[1]) == 30
    assert of_second[0] | of_second[1] == set(range(60, 120))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_global_batches_are_those_of_any_number_of_ranks_and_begin_at_any_step(policy):
    for weights in ((0.5, 2.0, 1.5), (1.0, 0.3, 1.0)):
        for epoch in (0, 3):
            alone = _epoch(policy, weights, 12, epoch)
            for world in (2, 3):
                np.testing.assert_array_equal(_epoch(policy, weights, 12, epoch, world).reshape(alone.shape), alone)
            (order,) = _orders(policy, weights, 12, epoch)
            np.testing.assert_array_equal(order.entries(order.steps - 1), alone[-1, 0])
            np.testing.assert_array_equal(order.ids(2), ids_of(alone[2, 0]))


@pytest.mark.parametrize("policy", POLICIES)
def test_all_epochs_have_the_same_steps_and_leave_fewer_than_a_batch_and_one_of_each_set(policy):
    for epoch in range(10):
        (order,) = _orders(policy, (0.5, 0.3, 1.7), 10, epoch)
        assert order.samples == 30 + 18 + 18 and order.steps == 6  # 1.7 of 11 are 18.7, in an epoch 18 or 19
        taken = np.concatenate([order.entries(step) for step in range(order.steps)])
        assert len(set(taken.tolist())) == 60 <= order.mixture.total(epoch) < 60 + 10 + 3


def test_without_weights_several_sets_are_in_the_order_of_one():
    assert Mixture.of(SIZES, ()) is None and Mixture.of(SIZES, (1.0, 1.0, 1.0)) is None
    # and whole weights leave the order of the images to the epoch's permutation, which mixes the sets
    twice = Mixture.of([5, 5], (1.0, 2.0))
    assert twice.entries(np.arange(15), 0, 7).tolist() == [*range(10), *(i + (1 << 48) for i in range(5, 10))]


def test_the_order_is_the_one_that_checkpoints_were_written_under():
    (order,) = _orders("global", (0.5, 2.0, 1.5), 8, epoch=3)
    assert order.entries(5).tolist() == ENTRIES["global"]
    (order,) = _orders("sharded", (0.5, 2.0, 1.5), 8, epoch=3)
    assert order.entries(5).tolist() == ENTRIES["sharded"]


_AGAIN = 1 << 48  # the second use in an epoch
ENTRIES = {
    "global": [_AGAIN + 117, _AGAIN + 90, 102, 38, 99, _AGAIN + 77, 103, _AGAIN + 98],
    "sharded": [57, 52, _AGAIN + 118, _AGAIN + 61, _AGAIN + 89, 91, 61, 116],
}


def test_batches_mix_the_sets():
    ids = ids_of(_epoch("global", (1.0, 0.5, 1.0), 20)).ravel()
    # of 101 images 60, 30 and 11: hypergeometric, variance n p (1 - p) (N - n) / (N - 1) below 4; five deviations
    for batch in ids.reshape(-1, 20):
        assert 20 * 60 / 101 - 10 < (batch < 60).sum() < 20 * 60 / 101 + 10
    assert abs(np.corrcoef(ids[:-1], ids[1:])[0, 1]) < 0.3


def test_a_sharded_epoch_reads_half_of_the_shards_of_a_set_that_it_takes_half_of():
    ends = np.arange(20, 2001, 20)  # 50 shards each of two sets
    mixture = Mixture.of([1000, 1000], (1.0, 0.5))
    for epoch in range(4):
        order = ShardedOrder(1500, 50, ends=ends, lanes=5, window=40, epoch=epoch, mixture=mixture)
        ids = np.concatenate([order.ids(step) for step in range(order.steps)])
        assert len(np.unique(ids)) == 1500
        assert len(np.unique(ids // 20)) == 75
        for step in (0, 17, order.steps - 1):
            assert set((order.ids(step) // 20).tolist()) <= set(order.coming_shards(step))


def test_stand_ins_are_the_other_entries_of_the_rank():
    (_, order) = _orders("global", (1.0, 2.0, 1.0), 12, world=2)
    own = [int(i) for step in range(order.steps) for i in order.entries(step)]
    stand_ins = [order.substitute(2, 3, attempt) for attempt in range(1, len(own))]
    assert sorted([*stand_ins, int(order.entries(2)[3])]) == sorted(own)


def test_a_second_use_in_an_epoch_draws_other_views():
    mixture = Mixture.of([5], (2.0,))
    entries = np.sort(mixture.entries(np.arange(10), 0, 0))
    assert ids_of(entries).tolist() == [*range(5)] * 2
    spec, sizes = ViewSpec.moco_v2(), np.full((10, 2), 500, dtype=np.int32)
    views = [draw(spec, seed=1, epoch=0, ids=entries, sizes=sizes, view=view) for view in (0, 1)]
    boxes = {tuple(box) for params in views for box in params.box.tolist()}
    assert len(boxes) == 20
    # the first use draws what an image that comes once does
    alone = draw(spec, seed=1, epoch=0, ids=np.arange(5), sizes=sizes[:5], view=0)
    np.testing.assert_array_equal(alone.box, views[0].box[:5])


def test_a_billion_images_take_no_more_memory_than_a_million():
    peaks = []
    for size in (10**6, 10**9):
        mixture = Mixture.of([size, size], (0.7, 1.5))
        order = EpochOrder(mixture.samples, 1024 * 256, 1023, 1024, epoch=3, mixture=mixture)
        with peak_memory() as peak:
            entries = order.entries(order.steps - 1)
        peaks.append(peak.bytes)
        assert len(np.unique(entries)) == 256 and ids_of(entries).max() < 2 * size
    assert peaks[1] < 2 * peaks[0] < 200_000


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ([10, 10], (1.0,), "1 weight for 2 sets: give one for each"),
        ([10, 10], (1.0, 0.05), "weight 0.05 takes no image of set 2 of 2, which has 10: use 0.1 or more"),
        ([10, 0], (), "weight 1 takes no image of set 2 of 2, which has 0: leave it out"),
    ],
)
def test_errors_say_what_to_use(sizes, weights, message):
    with pytest.raises(PipelineError, match=message):
        Mixture.of(sizes, weights)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), 1001.0])
def test_weights_that_are_none_are_refused(weight):
    with pytest.raises(PipelineError, match=r"weights=.*: it must be above 0 and at most 1,000, each of them"):
        PipelineOptions(weights=(1.0, weight))
