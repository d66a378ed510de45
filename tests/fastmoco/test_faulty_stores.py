"""Training from a store that stays out of reach stops, and continues later as if nothing had happened."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shards.storage.store import open_store
from tests.support.runs import metrics

SMALL = ["--recipe", "demo", "--image-size", "32", "--batch-size", "16", "--queue-size", "40", "--log-every", "1"]


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in metrics(run) if "loss" in record]


@pytest.mark.slow
def test_expired_credentials_stop_the_run_with_a_checkpoint(
    shard_sets, s3, in_process, s3_faults, tmp_path, monkeypatch
):
    monkeypatch.setenv("FASTMOCO_STORE_WAIT", "1")
    monkeypatch.setenv("FASTMOCO_CACHE_BYTES", "1")  # every image is a request of its own
    store = open_store(s3)
    for path in sorted((shard_sets / "train").iterdir()):
        store.write(path.name, path.read_bytes())

    def train(place: object, run: Path, **options: bool):
        flags = ["--shards", place, "--out", run, "--threads", "2", "--steps", "9"]
        return in_process("-m", "fastmoco.train", *SMALL, *flags, **options)

    train(shard_sets / "train", tmp_path / "whole")
    faults, run = s3_faults(), tmp_path / "run"
    faults.expire("key", after=90)  # of about 150
    ended = train(s3, run, check=False)
    last = ended.stderr.splitlines()[-1]
    assert ended.returncode == 2 and last.startswith(f"fastmoco train: cannot read {s3}/shard-00000")
    assert re.search(
        r": HTTP 400 Bad Request, ExpiredToken; renew the credentials, for \d+ s \(FASTMOCO_STORE_WAIT", last
    )
    assert not (run / "quarantine.jsonl").exists() and "bad image" not in ended.stderr
    done, whole = losses(run), losses(tmp_path / "whole")
    assert 0 < len(done) < 9 and done == whole[: len(done)]
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{len(done):08d}.pt"]
    s3_faults()
    train(s3, run)
    assert losses(run) == whole
