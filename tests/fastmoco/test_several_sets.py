"""Training on several sets with weights: continued in the middle of an epoch, and refused on other data."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch

import fastmoco
from fastmoco.checkpoints import checkpoint
from fastmoco.checkpoints.checkpoint import CheckpointError
from fastmoco.doctor.dry_run import dry_run
from fastmoco.recipes import recipe
from pipelines import PipelineError
from shards import ShardSetError
from tests.support.runs import resnet10_of
from tests.support.sets import pack_set

SMALL = {
    "recipe": "demo", "image_size": 32, "batch_size": 8, "queue_size": 16, "threads": 1, "log_every": 1, "steps": 6,
}  # fmt: skip
WEIGHTS = [0.1, 1.5]  # of 96 and 24 images: 9 or 10, and 36: 5 steps an epoch


class _Stop(fastmoco.Callback):
    def on_step(self, training):
        if training.step == 3:
            training.stop()


@pytest.fixture(scope="module", autouse=True)
def _narrow():
    with resnet10_of(1 / 4):
        yield


@pytest.fixture(scope="module")
def places(shard_sets):
    return [shard_sets / "train", shard_sets / "val"]


@pytest.fixture(scope="module")
def whole(places, tmp_path_factory):
    return fastmoco.pretrain(places, weights=WEIGHTS, out=tmp_path_factory.mktemp("several") / "whole", **SMALL)


def test_a_run_continues_in_the_middle_of_an_epoch_bit_for_bit(whole, places, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    out = tmp_path / "run"
    fastmoco.pretrain(places, weights=WEIGHTS, out=out, callbacks=[_Stop()], **SMALL)
    again = fastmoco.pretrain(places, weights=WEIGHTS, out=out, **SMALL)
    assert "continuing from" in caplog.text and "3 of 6 steps are done" in caplog.text
    assert f"{places[1]}: 24 images, × 1.5 in an epoch" in caplog.text
    assert "45 samples in global order, 5 steps of 8 images per epoch" in caplog.text
    ours, theirs = (checkpoint.load(run.checkpoint) for run in (again, whole))
    for part in ("query_encoder", "key_encoder"):
        assert all(torch.equal(ours[part][name], tensor) for name, tensor in theirs[part].items())
    assert [record["loss"] for record in again.metrics] == [record["loss"] for record in whole.metrics]
    assert json.loads((out / "config.json").read_text())["shards"] == list(map(str, places))


def test_it_is_not_continued_with_other_weights_or_sets(whole, places):
    for change, message in (
        ({"weights": None}, r"--weights was \[0.1, 1.5\], now \[1.0, 1.0\]"),
        (
            {"source": places[::-1]},
            rf"the shard sets were \w+, now \w+ \({places[1]}, {places[0]}; before: {places[0]}",
        ),
        ({"source": places[0], "weights": [0.5]}, r"the shard set was \w+, now"),
    ):
        given = {"source": places, "weights": WEIGHTS} | change
        settings = {} if given["weights"] is None else {"weights": given["weights"]}
        with pytest.raises(CheckpointError, match=message):
            fastmoco.pretrain(given["source"], out=whole.folder, **SMALL, **settings)


def test_a_dry_run_tries_each_set_and_counts_the_steps(places, tmp_path):
    config = fastmoco.Config(**{**recipe("demo").__dict__, "shards": tuple(places), "weights": (0.5, 2.0)})
    found = {(each.topic, each.text) for each in dry_run(config) if each.topic in ("images", "data", "steps")}
    assert ("images", f"{places[0]}: 96 images, × 0.5 in an epoch") in found
    assert sum(topic == "data" and text.endswith("can be read") for topic, text in found) == 2
    assert any(topic == "steps" and text.startswith(f"{96 // config.batch_size} of") for topic, text in found)


def test_the_bank_has_an_entry_for_each_image_and_not_for_each_of_an_epoch(places, tmp_path):
    settings = {**SMALL, "steps": 1, "mechanism": "memory-bank", "order": "sharded"}
    run = fastmoco.pretrain(places, weights=[0.1, 2], out=tmp_path / "run", **settings)
    assert checkpoint.load(run.checkpoint)["memory_bank"]["bank_MD"].shape[0] == 120


def test_what_cannot_be_mixed_is_refused(places, photos, tmp_path):
    with pytest.raises(PipelineError, match=r"weight 0.01 takes no image of set 2 of 2, which has 24: use 0.04"):
        fastmoco.pretrain(places, weights=[1, 0.01], out=tmp_path / "run", **SMALL)
    copy = pack_set(photos / "val", tmp_path / "copy", shard_size=32)
    with pytest.raises(ShardSetError, match=f"{places[1]} and {copy} hold the same images"):
        fastmoco.pretrain([*places, copy], out=tmp_path / "run", **SMALL)


@pytest.mark.parametrize("several", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_run_on_a_set_that_has_grown_continues_on_the_images_that_it_began_with(
    whole, places, photos, tmp_path, caplog, several
):
    """As if the images had not been appended, bit for bit; a new run trains on all of them."""
    val, settings, out = pack_set(photos / "val", tmp_path / "val", shard_size=32), SMALL, tmp_path / "run"
    sources = [places[0], val] if several else val
    settings = {**SMALL, "weights": WEIGHTS} if several else {**SMALL, "steps": 5}
    fastmoco.pretrain(sources, out=out, callbacks=[_Stop()], **settings)
    other = shutil.copytree(out, tmp_path / "other")
    first = whole if several else fastmoco.pretrain(sources, out=other, **settings)
    pack_set(photos / "train", val, append=True, limit=10, shard_size=32)
    caplog.clear()
    run = fastmoco.pretrain(sources, out=out, **settings)
    grown, now = (120, 130) if several else (24, 34)
    assert (
        f"has grown from {grown} to {now} images since this run began, which continues on the first {grown}; to"
        in caplog.text
    )
    ours, theirs = (checkpoint.load(each.checkpoint)["query_encoder"] for each in (run, first))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    anew = fastmoco.pretrain(sources, out=tmp_path / "anew", init=run.folder, **settings)
    assert checkpoint.read(anew.checkpoint, whole=False)["data"]["samples"] == now
