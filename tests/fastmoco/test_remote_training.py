from __future__ import annotations

import json
import sys

import pytest

from shards.storage.store import open_store
from tests.support.runs import metrics

SMALL = ["--recipe", "demo", "--image-size", "32", "--batch-size", "16", "--queue-size", "40", "--log-every", "1"]


@pytest.mark.slow
def test_a_set_in_a_bucket_trains_like_one_in_a_folder(shard_sets, s3, tmp_path, command):
    """With a cache smaller than the set."""
    store = open_store(s3)
    files = sorted((shard_sets / "train").iterdir())
    for path in files:
        store.write(path.name, path.read_bytes())
    tars = [path.stat().st_size for path in files if path.suffix == ".tar"]
    bound = sum(tars) * 2 // 3
    losses = {}
    for place in (shard_sets / "train", s3):
        run = tmp_path / "runs" / str(len(losses))
        arguments = [*SMALL, "--shards", place, "--out", run, "--threads", "2", "--steps", "4"]
        command(sys.executable, "-m", "fastmoco.train", *arguments, env={"FASTMOCO_CACHE_BYTES": str(bound)})
        records = metrics(run)
        losses[place] = [record["loss"] for record in records if "loss" in record]
        assert json.loads((run / "config.json").read_text())["shards"] == str(place)
        assert not (run / "quarantine.jsonl").exists()
    assert losses[s3] == losses[shard_sets / "train"]
    cached = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*/*") if path.suffix != ".part")
    assert 0 < cached <= bound
