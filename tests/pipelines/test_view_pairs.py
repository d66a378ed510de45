"""Query and key with augmentations of their own, on every backend."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipelines import PipelineOptions, TwoViews, ViewPair, ViewSpec, build, build_stream
from pipelines.choice import installed
from shards import ShardSet
from tests.support.views import assert_same_views

SIDE = 32
QUERY = replace(ViewSpec.moco_v2(SIDE), vertical_flip=0.5, turns=0.5)
PAIR = ViewPair(QUERY, replace(ViewPair.moco_v3(SIDE).key, area=(0.5, 0.9), solarize=0.5))
without_dali = pytest.mark.skipif(not installed(), reason="needs NVIDIA DALI")
BACKENDS = ["torch", pytest.param("dali", marks=[pytest.mark.dali, without_dali])]


@pytest.fixture
def shards(shard_sets):
    with ShardSet(shard_sets / "val") as opened:
        yield opened


def _batches(shards, backend, spec=PAIR, *, epoch=0, start_step=0, threads=None, **place):
    options = PipelineOptions(pipeline=backend, threads=threads)
    with build(shards, spec, options, **{"global_batch": 8, "seed": 4, **place}) as pipeline:
        return list(pipeline.epoch(epoch, start_step))


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_view_is_that_of_its_own_augmentation(shards, backend):
    both = _batches(shards, backend)
    queries, keys = (_batches(shards, backend, spec) for spec in PAIR)
    expected = [TwoViews(a.query, b.key, a.ids) for a, b in zip(queries, keys, strict=True)]
    assert_same_views(both, expected)
    assert not any(torch.equal(a.key, b.key) for a, b in zip(both, queries, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_restarts_and_world_size_do_not_change_a_byte(shards, backend):
    reference = _batches(shards, backend, epoch=1, threads=1)
    assert_same_views(_batches(shards, backend, epoch=1, threads=3), reference)
    assert_same_views(_batches(shards, backend, epoch=1, start_step=2), reference[2:])
    ranks = [_batches(shards, backend, epoch=1, start_step=1, rank=rank, world_size=2) for rank in range(2)]
    joined = [
        TwoViews(*(torch.cat([getattr(part, name) for part in parts]) for name in ("query", "key", "ids")))
        for parts in zip(*ranks, strict=True)
    ]
    assert_same_views(joined, reference[1:])


def test_a_constant_batch_has_both_augmentations(shards):
    first, *others = _batches(shards, "constant")
    assert_same_views([first, *others], [_batches(shards, "torch")[0]] * 3)


def test_a_stream_has_both_augmentations(shard_sets):
    tars = [str(tar) for tar in sorted((shard_sets / "val").glob("*.tar"))]
    made = []
    for spec in (PAIR, *PAIR):
        with build_stream(tars, spec, PipelineOptions(threads=1), images_per_epoch=16, global_batch=8) as pipeline:
            made.append(list(pipeline.epoch(0)))
    both, queries, keys = made
    assert_same_views(both, [TwoViews(a.query, b.key, a.ids) for a, b in zip(queries, keys, strict=True)])
