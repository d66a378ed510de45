"""Ranks that do not come: named, with where they were, within a bound."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path

import pytest

from fastmoco import detect, linear
from fastmoco.config import ConfigError
from fastmoco.detection.settings import DetectSettings
from fastmoco.probes.linear_settings import LinearSettings
from fastmoco.ranks.patience import check_timeout
from fastmoco.recipes import recipe
from fastmoco.trainer.data import places_of
from fastmoco.trainer.loop import train
from tests.support.runs import metrics

SCRIPT = Path(__file__).parent / "scripts" / "stalled.py"
WHO = rf"rank 1 on {os.uname().nodename}, which made the next step after step 3 and was last seen to move \d+ s ago"


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("how", "where"),
    [
        ("stopped", r"; its process does not answer \(stopped, swapped out, or its machine is gone\)"),
        ("hangs", r", in threading\.py:\d+ wait, threading\.py:\d+ wait, stalled\.py:\d+ stuck"),
    ],
)
def test_a_rank_that_does_not_come_is_named_and_all_end(tmp_path, torchrun, how, where):
    ended = torchrun(2, SCRIPT, tmp_path, how, check=False)
    assert ended.returncode == 1
    assert re.fullmatch(
        rf"count: waited 5 s \(--rank-timeout\) for {WHO}{where}; this rank waited in vote\.py:\d+ __call__, .*\. "
        r"Look at that process and its machine, and run the same command again\n",
        ended.stderr.splitlines(keepends=True)[-1],
    ), ended.stderr
    (warned,) = [line for line in metrics(tmp_path / "run") if line.get("warning") == "waiting_for_rank"]
    assert re.fullmatch(rf"waiting for \d+ s for {WHO}{where}; the run ends after 5 s", warned["message"]), warned


def test_ranks_wait_for_each_other_longer_than_for_a_store(monkeypatch):
    check_timeout(10.0, "s3://bucket/set")
    check_timeout(0.1, "shards", Path("val"))
    monkeypatch.setenv("FASTMOCO_STORE_WAIT", "540")
    with pytest.raises(
        ConfigError,
        match=r"--rank-timeout is 10 minutes, and must be more than the 10 that a rank may wait for s3://bucket/set; ",
    ):
        check_timeout(10.0, "shards", "s3://bucket/set")
    check_timeout(10.5, "s3://bucket/set")
    # the sets of a probe are read by all ranks, too
    probe = {"knn_every": 1, "knn_val": "s3://bucket/val"}
    assert places_of(recipe("demo", shards="set", **probe)) == [Path("set"), "s3://bucket/val"]
    with pytest.raises(ConfigError, match="may wait for s3://bucket/val; "):
        train(recipe("demo", shards="set", **probe))


def test_the_linear_probe_and_detection_take_their_bound(monkeypatch):
    """Their settings reach `world`, before anything else is done."""
    bounds = []

    def world(timeout):
        bounds.append(timeout)
        raise ConfigError("seen")

    monkeypatch.setattr("fastmoco.ranks.world.world", world)
    for run, settings in (
        (linear.run, LinearSettings("untrained", "train", "val", arch="resnet10", rank_timeout=3)),
        (detect.run, DetectSettings(rank_timeout=4)),
    ):
        with pytest.raises(ConfigError, match="seen"):
            run(settings)
    assert bounds == [timedelta(minutes=3), timedelta(minutes=4)]
