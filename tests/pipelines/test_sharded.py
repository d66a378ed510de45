"""ShardedOrder: what holds for every order holds for it, and a rank reads few shards at a time."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines import EpochOrder, PipelineError, ShardedOrder
from pipelines.order.policy import GLOBAL_UP_TO, choose_policy
from tests.support.memory import peak_memory

SETS = {
    "one shard": [97],
    "fewer shards than ranks": [61, 41],
    "primes": [7, 11, 13, 17, 19, 23, 29],
    "very unequal": [1, 150, 3, 1, 2, 45, 1],
    "empty shards": [0, 0, 50, 0, 30, 0, 0, 41, 0],
    "single samples": [1] * 101,
    "equal": [20] * 9,
}
SHAPES = [  # lanes, window
    (1, 1),
    (1, 10**6),
    (3, 7),
    (64, 16),
    (10**6, 3),
]


def _order(sizes, batch, rank=0, world=1, **place):
    return ShardedOrder(sum(sizes), batch, rank, world, ends=np.cumsum(sizes), **place)


def _epoch(sizes, batch, world=1, **place):
    """Ids of all ranks as [step, rank, B]."""
    orders = [_order(sizes, batch, rank, world, **place) for rank in range(world)]
    assert len({order.steps for order in orders}) == 1
    return np.array([[order.ids(step) for order in orders] for step in range(orders[0].steps)])


def _shards(sizes, ids):
    return np.unique(np.searchsorted(np.cumsum(sizes), ids, side="right"))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("lanes", "window"), SHAPES)
def test_no_id_comes_twice_on_any_number_of_ranks_and_all_have_the_same_batches(name, lanes, window):
    sizes = SETS[name]
    total = sum(sizes)
    for batch, worlds in ((12, (2, 3, 12)), (13, (13,)), (total, ())):
        for epoch in (0, 1):
            place = {"seed": 3, "epoch": epoch, "lanes": lanes, "window": window}
            alone = _epoch(sizes, batch, **place)
            assert len(alone) == total // batch
            assert len(np.unique(alone)) == alone.size
            assert 0 <= alone.min() <= alone.max() < total
            for world in worlds if epoch else ():
                np.testing.assert_array_equal(_epoch(sizes, batch, world, **place).reshape(alone.shape), alone)


def test_it_begins_at_any_step():
    place = {"epoch": 4, "lanes": 4, "window": 50}
    whole = _epoch(SETS["very unequal"], 24, 2, **place)
    for step in (len(whole) - 1, 3, 6):
        np.testing.assert_array_equal(_order(SETS["very unequal"], 24, 1, 2, **place).ids(step), whole[step, 1])


@pytest.mark.parametrize("name", SETS)
def test_left_over_ids_are_the_remainder_and_every_id_is_left_over_at_times(name):
    sizes, batch = SETS[name], 12
    total, rounds = sum(sizes), 100
    left = np.zeros(total)
    for epoch in range(rounds):
        missing = np.setdiff1d(np.arange(total), _epoch(sizes, batch, epoch=epoch))
        assert len(missing) == total % batch
        left[missing] += 1
    if total % batch:
        # binomial: five standard deviations above the mean
        share = total % batch / total
        assert left.max() <= rounds * share + 5 * np.sqrt(rounds * share) + 1
        assert (left == 0).mean() < 2 * (1 - share) ** rounds + 0.05  # twice the expectation, plus a margin


def test_seeds_and_epochs_give_other_orders():
    orders = {tuple(_epoch([20, 30], 50, seed=s, epoch=e, lanes=2).ravel()) for s in range(5) for e in range(5)}
    assert len(orders) == 25


def test_a_rank_reads_few_shards_at_a_time_and_a_shard_belongs_to_one_rank():
    sizes, batch, world, lanes, window = [100] * 240, 32, 4, 8, 150
    spans, owners, ever = [], np.zeros(len(sizes), dtype=int), []
    for rank in range(world):
        order = _order(sizes, batch, rank, world, lanes=lanes, window=window)
        steps = [_shards(sizes, order.ids(step)) for step in range(order.steps)]
        # a lane reads batch / lanes samples a step, so a window lasts this many steps
        during = window * lanes // batch
        spans += [len(np.unique(np.concatenate(steps[at : at + during]))) for at in range(0, order.steps, during)]
        mine = np.unique(np.concatenate(steps))
        owners[mine] += 1
        ever.append(len(mine))
    # two lanes a rank; a window of 150 touches at most three shards of 100, and a span of its length two windows
    assert max(spans) <= 2 * 2 * 3
    assert max(ever) <= len(sizes) / world + 2
    # the ranks' stretches meet in `world` places
    assert (owners > 1).sum() <= world
    everywhere = EpochOrder(sum(sizes), batch, 0, world)
    span = np.concatenate([everywhere.ids(step) for step in range(during)])
    assert len(_shards(sizes, span)) > 2 * max(spans)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("lanes", "window"), SHAPES)
def test_coming_shards_are_those_of_this_window_and_the_next(name, lanes, window):
    sizes = SETS[name]
    for rank in range(3):
        order = _order(sizes, 12, rank, 3, epoch=2, lanes=lanes, window=window)
        ahead = max(1, window * min(lanes, 12) // 12)  # steps of a window, at least
        for step in range(order.steps):
            coming = order.coming_shards(step)
            assert len(set(coming)) == len(coming)
            assert all(sizes[shard] > 0 for shard in coming)
            soon = [order.ids(later) for later in range(step, min(step + ahead, order.steps))]
            assert set(_shards(sizes, np.concatenate(soon)).tolist()) <= set(coming)


def test_shards_in_use_come_before_those_of_the_next_window():
    sizes = [100] * 60
    order = _order(sizes, 16, lanes=4, window=200)
    coming = order.coming_shards(0)
    during = 200 * 4 // 16
    now = _shards(sizes, np.concatenate([order.ids(step) for step in range(during)])).tolist()
    assert set(coming[: len(now)]) == set(now)
    assert len(coming) > len(now)
    last = order.coming_shards(order.steps - 1)
    assert len(last) < len(coming)  # there is no next window


def test_stand_ins_are_the_other_ids_of_the_rank_and_come_from_the_same_lane():
    sizes = [20] * 9
    order = _order(sizes, 12, 1, 3, lanes=6, window=10)
    own = {int(i) for step in range(order.steps) for i in order.ids(step)}
    bad = int(order.ids(2)[3])
    stand_ins = [order.substitute(2, 3, attempt) for attempt in range(1, order.steps * order.batch)]
    assert sorted(stand_ins) == sorted(own - {bad})
    assert stand_ins[0] == order.ids(3)[3]
    # a lane is 30 samples long: this slot's samples are in two or three of the rank's shards
    lane = [bad, *stand_ins[: order.steps - 1]]
    assert len(_shards(sizes, lane)) <= 3 < len(_shards(sizes, list(own)))


def test_a_billion_samples_take_the_memory_of_the_ranks_own_shards():
    ends = np.cumsum(np.full(500_000, 2000))
    order = ShardedOrder(10**9, 1024 * 256, 1023, 1024, epoch=3, ends=ends, lanes=1024)
    with peak_memory() as peak:
        ids = order.ids(order.steps - 1)
    assert peak.bytes < 100 * 500_000  # a few numbers for each shard; a stored permutation would take 8 GB
    assert len(np.unique(ids)) == 256
    assert 0 <= ids.min() <= ids.max() < 10**9
    assert all(value.base is None for value in order._stretch)  # none is a view of a larger array
    held = sum(value.nbytes for value in order._stretch)
    assert held <= 16 * (500_000 / 1024 + 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lanes": 0}, "order_lanes=0: it must be at least 1"),
        ({"window": 0}, "order_window=0: it must be at least 1"),
        ({"world": 5}, "global batch 12 is not divisible by 5 ranks; use 10 or 15"),
    ],
)
def test_errors_say_what_to_use(change, message):
    with pytest.raises(PipelineError, match=message):
        _order([50], 12, **change)


def test_auto_takes_the_global_order_up_to_sixteen_million():
    assert choose_policy("auto", GLOBAL_UP_TO) == "global"
    assert choose_policy("auto", GLOBAL_UP_TO + 1) == "sharded"
    assert choose_policy("sharded", 10) == "sharded"
    assert choose_policy("global", 10**9) == "global"
    with pytest.raises(PipelineError, match="order 'random' is unknown: use one of auto, global, sharded"):
        choose_policy("random", 10)
