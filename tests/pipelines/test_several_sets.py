"""Pipelines over several sets with weights: the same batches on all backends, ranks and restarts, here and in S3."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastmoco.demo.made import make_images
from pipelines import PipelineOptions, ViewSpec, build
from shards import PackOptions, ShardSet, ShardSetError, pack
from shards.joined import JoinedSet
from shards.storage.store import open_store
from tests.support.views import assert_same_views

SPEC = ViewSpec.moco_v2(32)
OPTIONS = PipelineOptions(pipeline="torch", threads=1, weights=(1.5, 0.5), order_window=8, order_lanes=2)
SHARDED = replace(OPTIONS, order="sharded")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two sets: 16 images in 2 shards, and 24 of other sizes in 4."""
    folder = tmp_path_factory.mktemp("several")
    for name, number, size, shard in (("a", 8, (48, 64), 8), ("b", 12, (64, 40), 7)):
        make_images(folder / "images" / name, classes=2, per_class=number, size=size, seed=number)
        options = PackOptions(src=folder / "images" / name, out=folder / name, workers=1, shard_size=shard)
        pack(options, progress=False)
    return folder


@pytest.fixture
def sets(folder):
    with ShardSet(folder / "a") as a, ShardSet(folder / "b") as b:
        yield a, b


def _batches(sets, options=OPTIONS, epoch=1, start_step=0, **place):
    with build(sets, SPEC, options, **{"global_batch": 6, "seed": 4, **place}) as pipeline:
        assert pipeline.steps_per_epoch == 6  # of 24 + 12 images
        return list(pipeline.epoch(epoch, start_step))


@pytest.mark.parametrize("options", [OPTIONS, SHARDED], ids=["global", "sharded"])
def test_restarts_ranks_and_stores_do_not_change_a_byte(sets, options, s3):
    whole = _batches(sets, options)
    ids = torch.cat([batch.ids for batch in whole]).tolist()
    counts = np.bincount(ids, minlength=40)
    assert (sorted(counts[:16]), sorted(counts[16:])) == ([1] * 8 + [2] * 8, [0] * 12 + [1] * 12)
    assert_same_views(_batches(sets, options, start_step=4), whole[4:])
    for world in (2, 3):
        of_ranks = [_batches(sets, options, rank=rank, world_size=world) for rank in range(world)]
        for batch, *parts in zip(whole, *of_ranks, strict=True):
            assert torch.equal(torch.cat([part.ids for part in parts]), batch.ids)
            assert torch.equal(torch.cat([part.query for part in parts]), batch.query)
    # an image that comes twice has other views the second time
    views = {}
    for batch in whole:
        for sample, view in zip(batch.ids.tolist(), batch.query, strict=True):
            views.setdefault(sample, []).append(view)
    assert all(not torch.equal(*pair) for pair in views.values() if len(pair) == 2)
    store = open_store(f"{s3}/b")
    for path in sorted(sets[1].path.iterdir()):
        store.write(path.name, path.read_bytes())
    with ShardSet(f"{s3}/b") as remote:
        assert_same_views(_batches((sets[0], remote), options), whole)


@pytest.mark.dali
def test_dali_makes_the_batches_of_torch(sets):
    pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI")
    ours, theirs = _batches(sets), _batches(sets, replace(OPTIONS, pipeline="dali"))
    assert len(ours) == len(theirs) == 6
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.ids, b.ids)
        # within a level of 255 inside the view, by the smallest standard deviation; its rim is another matter
        assert (a.query - b.query)[..., 8:-8, 8:-8].abs().median() < 1 / 255 / 0.224


def test_an_image_of_several_sets_is_that_of_its_set(sets):
    both = JoinedSet(sets)
    assert len(both) == 40 and both.ends.tolist() == [8, 16, 23, 30, 37, 40] and not both.remote
    ids = np.array([39, 3, 16, 15, 30])
    np.testing.assert_array_equal(both.sizes(ids)[[0, 2, 4]], sets[1].sizes(ids[[0, 2, 4]] - 16))
    np.testing.assert_array_equal(both.sizes(ids)[[1, 3]], sets[0].sizes(ids[[1, 3]]))
    assert both.check(39) == sets[1].check(23) and both.check(15) == sets[0].check(15)
    assert both.source(16) == sets[1].source(0) != ""
    assert both.locate(30) == (f"{sets[1].path}/shard-000002.tar", "000002000000")
    assert both.digest != JoinedSet(sets[::-1]).digest
    for wrong in (-1, 40):
        with pytest.raises(IndexError, match=r"outside 0..39 of 2 sets"):
            both.check(wrong)
    with pytest.raises(ShardSetError, match="hold the same images; give one of them, and --weights to repeat them"):
        JoinedSet([*sets, ShardSet(sets[0].path)])


def test_the_quarantine_names_the_set_and_a_replacement_has_the_views_of_its_own_place(sets, tmp_path, monkeypatch):
    of_epochs = [_batches(sets, epoch=epoch) for epoch in (0, 1)]
    epoch = next(epoch for epoch in (0, 1) if any(27 in batch.ids for batch in of_epochs[epoch]))  # of b in one of them
    whole, check = of_epochs[epoch], sets[1].check
    monkeypatch.setattr(sets[1], "check", lambda sample: b"" if sample == 11 else check(sample))
    made = _batches(sets, epoch=epoch, quarantine=tmp_path / "quarantine.jsonl")
    line = json.loads((tmp_path / "quarantine.jsonl").read_text())
    assert (line["sample"], line["shard"]) == (27, f"{sets[1].path}/shard-000001.tar")
    assert line["source"] == sets[1].source(11)
    step, slot = line["step"], next(i for i, sample in enumerate(whole[line["step"]].ids.tolist()) if sample == 27)
    assert made[step].ids[slot] == line["replaced_by"] == whole[(step + 1) % 6].ids[slot]
    assert torch.equal(made[step].query[slot], whole[(step + 1) % 6].query[slot])


def test_the_sheet_shows_several_sets(folder, in_process, tmp_path):
    arguments = ["--shards", folder / "a", folder / "b", "--weights", "2", "0.5", "--count", "99", "--image-size", "16"]
    said = in_process("-m", "pipelines.sheet", *arguments, "--out", tmp_path / "views.png").stdout.splitlines()
    assert len(said) == 2 * (2 * 16 + 12) + 1 and said[-1] == f"wrote {tmp_path / 'views.png'}"
    samples = [int(line.split()[3].rstrip(",")) for line in said[:-1:2]]
    assert sorted(samples) == sorted([*range(16)] * 2 + [sample for sample in samples if sample >= 16])
    assert len({line.partition(": ")[2] for line in said[:-1]}) == 88  # no two crops are the same
    arguments[4] = "nan"
    wrong = in_process("-m", "pipelines.sheet", *arguments, "--out", tmp_path / "other.png", check=False)
    assert wrong.returncode == 2 and re.search("weights.*nan", wrong.stderr) and "Traceback" not in wrong.stderr
