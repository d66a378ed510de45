"""Pipelines in the order `sharded`: the same bytes on any ranks, and remote shards fetched before they are needed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastmoco.demo.made import make_images
from pipelines import PipelineOptions, ViewSpec, build
from pipelines.order.sharded import ShardedOrder
from shards import PackOptions, ShardSet, pack
from shards.storage.store import open_store

SHARDED = PipelineOptions(pipeline="torch", order="sharded", order_lanes=4, order_window=12, threads=2)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """160 images in 20 shards."""
    folder = tmp_path_factory.mktemp("sharded")
    make_images(folder / "images", classes=4, per_class=40, size=40, seed=0)
    pack(PackOptions(src=folder / "images", out=folder / "set", workers=1, shard_size=8), progress=False)
    return folder / "set"


def _batches(shards, start_step=0, options=SHARDED, **place):
    with build(shards, ViewSpec.moco_v2(32), options, global_batch=8, **place) as pipeline:
        assert pipeline.order == options.order
        return list(pipeline.epoch(1, start_step))


def test_restarts_and_world_size_do_not_change_a_byte(packed):
    with ShardSet(packed) as shards:
        reference = _batches(shards)
        assert sorted(torch.cat([batch.ids for batch in reference]).tolist()) == list(range(160))
        later = _batches(shards, 15, replace(SHARDED, threads=3))
        halves = [_batches(shards, rank=rank, world_size=2) for rank in range(2)]
        for ours, theirs in zip(later, reference[15:], strict=True):
            assert torch.equal(ours.ids, theirs.ids) and torch.equal(ours.query, theirs.query)
        for first, second, theirs in zip(*halves, reference, strict=True):
            assert torch.equal(torch.cat((first.ids, second.ids)), theirs.ids)
            assert torch.equal(torch.cat((first.key, second.key)), theirs.key)
        other = torch.cat([batch.ids for batch in _batches(shards, options=replace(SHARDED, order="global"))])
        assert not torch.equal(other, torch.cat([batch.ids for batch in reference]))


def test_remote_shards_are_fetched_once_each_and_by_the_ranks_that_read_them(packed, s3, monkeypatch):
    """By a rank, those of its own lanes alone; with a cache that holds what a rank uses, and not the set."""
    store = open_store(s3)
    for path in sorted(packed.iterdir()):
        store.write(path.name, path.read_bytes())
    tars = sum(path.stat().st_size for path in packed.glob("*.tar"))
    monkeypatch.setenv("FASTMOCO_CACHE_BYTES", str(tars * 2 // 3))
    asked: list[int] = []
    with ShardSet(packed) as local, ShardSet(s3) as remote:
        fetch = remote.prefetch

        def prefetch(shards):
            asked.extend(shards)
            return fetch(shards)

        monkeypatch.setattr(remote, "prefetch", prefetch)
        rank, ends = {"rank": 1, "world_size": 2}, local.ends
        seen = set()
        with build(remote, ViewSpec.moco_v2(32), replace(SHARDED, threads=None), global_batch=8, **rank) as pipeline:
            for batch, expected in zip(pipeline.epoch(1), _batches(local, **rank), strict=True):
                assert torch.equal(batch.ids, expected.ids) and torch.equal(batch.query, expected.query)
                seen |= set(np.searchsorted(remote.ends, batch.ids.numpy(), side="right").tolist())
                assert seen <= set(asked)
    # half of the set, cut at both ends; a shard that two of the rank's lanes share may be requested twice
    assert 10 <= len(seen) <= 12
    # the next epoch's first batches are made before it begins
    place = {"ends": ends, "lanes": SHARDED.order_lanes, "window": SHARDED.order_window}
    following = ShardedOrder(160, 8, **rank, epoch=2, **place)
    coming = {shard for step in range(3) for shard in following.coming_shards(step)}
    assert set(asked) - seen <= coming
    assert len(asked) <= len(seen) + 1 + len(coming)
