"""Start-up on a set of many shards: the manifest, and the shards that are read."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines import PipelineOptions, ViewSpec, build
from pipelines.order.policy import epoch_orders
from shards import ShardSet
from shards.format.manifest import MANIFEST
from shards.format.parsing import read_manifest

COUNT, BATCH, PREFETCH = 500, 16, 1
opened: list[str] | None = None


def _note(event, details):
    if event == "open" and opened is not None:
        opened.append(os.fspath(details[0]) if isinstance(details[0], (str, Path)) else "")


sys.addaudithook(_note)  # audit hooks cannot be removed


@pytest.mark.parametrize("order", ["global", "sharded"])
def test_no_shard_is_opened_but_those_that_are_read(shard_sets, tmp_path, order):
    """Five hundred records, but files for the shards of the first batches only."""
    global opened
    manifest = read_manifest(shard_sets / "train" / MANIFEST)
    real = manifest.records[0]
    records = tuple(replace(real, name=f"shard-{shard:06d}") for shard in range(COUNT))
    made = replace(manifest, records=records, samples=COUNT * real.samples, bytes=COUNT * real.bytes)
    (tmp_path / MANIFEST).write_bytes(made.to_bytes())
    options = PipelineOptions(pipeline="torch", order=order, order_window=64, order_lanes=4, prefetch=PREFETCH)
    with ShardSet(tmp_path) as shards:
        orders = epoch_orders(shards, options, global_batch=BATCH, rank=0, world_size=1, seed=0)
        # one batch is handed out, PREFETCH are ready, and one is being made
        ids = np.concatenate([orders(0).ids(step) for step in range(PREFETCH + 2)])
    read = np.unique(np.searchsorted(shards.ends, ids, side="right")).tolist()
    for shard in read:
        for ending in ("tar", "npy"):
            (tmp_path / f"shard-{shard:06d}.{ending}").symlink_to(shard_sets / "train" / f"{real.name}.{ending}")
    if order == "sharded":
        assert len(read) < 20
    opened = []
    with ShardSet(tmp_path) as shards:
        assert [Path(name).name for name in opened if str(tmp_path) in name] == [MANIFEST]
        with build(shards, ViewSpec.moco_v2(32), options, global_batch=BATCH) as pipeline:
            batches = pipeline.epoch(0)
            first = next(batches)
            assert pipeline.quarantined == 0
    names = {Path(name).stem for name in opened if str(tmp_path) in name and not name.endswith(MANIFEST)}
    opened = None
    needed = {f"shard-{shard:06d}" for shard in np.searchsorted(shards.ends, first.ids.numpy(), side="right")}
    assert needed <= names <= {f"shard-{shard:06d}" for shard in read}
