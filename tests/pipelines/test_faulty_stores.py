"""Faults of a store, or of the way to it, are no image's fault: batches wait for it, or the pipeline raises."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pipelines import PipelineOptions, ViewSpec, build, build_stream
from pipelines.labelled import LabelledPipeline
from shards import ShardSet, ShardSetError, StreamError
from shards.errors import StoreError, UserError
from shards.storage.store import open_store
from tests.support.faulty import Faults, FaultyServer
from tests.support.serving import serving
from tests.support.tars import write_tar
from tests.support.views import assert_same_views

OPTIONS = PipelineOptions(pipeline="torch", threads=2, shuffle_buffer=20)
READ = r"cannot read \S+/shard-00000\d\.\w+: "
PLACE = {"global_batch": 16, "seed": 1}


@pytest.fixture
def place(shard_sets, s3, monkeypatch) -> str:
    """The set `train` in a bucket, read image by image, as its cache has no room."""
    monkeypatch.setenv("FASTMOCO_CACHE_BYTES", "1")
    store = open_store(s3)
    for path in sorted((shard_sets / "train").iterdir()):
        store.write(path.name, path.read_bytes())
    return s3


def batches(place: str | Path, quarantine: Path):
    with ShardSet(place) as shard_set, build(shard_set, ViewSpec(32), OPTIONS, **PLACE, quarantine=quarantine) as made:
        return list(made.epoch(0))


def test_batches_after_an_outage_are_those_without_one(place, shard_sets, s3_faults, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("FASTMOCO_STORE_WAIT", "60")
    faults = s3_faults()
    faults.outage(8, after=40)
    quarantine = tmp_path / "quarantine.jsonl"
    assert_same_views(batches(place, quarantine), batches(shard_sets / "train", quarantine))
    assert not quarantine.exists() and set(faults.counts) == {"outage"}
    assert caplog.text.count("trying again") == 1, "one warning for the outage, not one for each image"


def test_faults_at_random_change_no_batch(place, shard_sets, s3_faults, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTMOCO_STORE_WAIT", "60")
    faults = s3_faults(seed=1, rate=0.1, kinds=("error", "busy", "cut", "drop"), in_row=1)
    quarantine = tmp_path / "quarantine.jsonl"
    assert_same_views(batches(place, quarantine), batches(shard_sets / "train", quarantine))
    assert not quarantine.exists() and set(faults.counts) == {"error", "busy", "cut", "drop"}


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("expired", READ + r"HTTP 400 Bad Request, ExpiredToken; renew the credentials, for \d+ s"),
        ("outage", READ + r"the server closed the connection, for \d+ s \(FASTMOCO_STORE_WAIT"),
        ("tar", r"\S+/shard-000001\.tar is missing; put it back, or run the fastmoco pack command that packed"),
        ("bucket", READ + "the bucket does not exist"),
    ],
)  # fmt: skip
def test_a_store_that_stays_out_of_reach_ends_the_pipeline(place, s3_faults, tmp_path, monkeypatch, fault, cause):
    monkeypatch.setenv("FASTMOCO_STORE_WAIT", "1")
    faults, quarantine = s3_faults(), tmp_path / "quarantine.jsonl"
    with ShardSet(place) as shard_set:
        if fault == "tar":
            open_store(place).remove("shard-000001.tar")
        elif fault == "bucket":
            faults.plan(*["no bucket"] * 500)
        else:
            faults.expire("key") if fault == "expired" else faults.outage(600)
        with (
            build(shard_set, ViewSpec(32), OPTIONS, **PLACE, quarantine=quarantine) as made,
            pytest.raises(StoreError, match=f"^{cause}"),
        ):
            list(made.epoch(0))
        with pytest.raises(StoreError, match=f"^{cause}"):
            list(LabelledPipeline(shard_set, resize=32, crop=32, batch_size=16, options=OPTIONS))
    assert not quarantine.exists()


def test_a_set_that_cannot_be_opened_says_why(place, s3_faults, monkeypatch):
    monkeypatch.setenv("FASTMOCO_STORE_WAIT", "0")
    s3_faults().expire("key")
    with pytest.raises(ShardSetError, match=r"cannot read s3://\S+manifest.json: HTTP 400 Bad Request, ExpiredToken"):
        ShardSet(place)
    monkeypatch.setenv("FASTMOCO_STORE_WAIT", "soon")
    with pytest.raises(ShardSetError, match="FASTMOCO_STORE_WAIT='soon' is not a number of seconds; give 0 to 86400"):
        ShardSet(place)


def test_closing_does_not_wait_for_a_store(place, s3_faults):
    faults = s3_faults()
    with ShardSet(place) as shard_set:
        made = build(shard_set, ViewSpec(32), OPTIONS, **PLACE)
        taken = made.epoch(0)
        next(taken)
        faults.outage(3600)
        errors: list[UserError] = []
        consumer = threading.Thread(target=lambda: errors.extend(_error(taken)))
        consumer.start()
        while faults.counts["outage"] < 8:  # eight requests at least are in a pause, which grows to half a minute
            time.sleep(0.01)
        closing = threading.Thread(target=made.close)
        closing.start()
        closing.join(20)
        assert not closing.is_alive()
        consumer.join()


def _error(taken) -> list[UserError]:
    try:
        return list(taken) and []
    except (UserError, RuntimeError):
        return []


@pytest.fixture(scope="module")
def tars(photos, tmp_path_factory) -> list[Path]:
    folder, files = tmp_path_factory.mktemp("tars"), sorted((photos / "train").rglob("*.jpg"))
    return [
        write_tar(folder / f"{n}.tar", {f"{f.parent.name}{f.stem}.jpg": f.read_bytes() for f in files[n::3]})
        for n in (0, 1, 2)
    ]


def streamed(tars: list[str]):
    with build_stream(tars, ViewSpec(32), OPTIONS, **PLACE, images_per_epoch=96) as made:
        return list(made.epoch(0))


@pytest.mark.parametrize("where", ["web", "web without ranges", pytest.param("s3", marks=pytest.mark.long)])
def test_a_stream_continues_after_faults(tars, where, s3, s3_faults, monkeypatch):
    monkeypatch.setenv("FASTMOCO_STORE_WAIT", "60")
    reference = streamed([str(tar) for tar in tars])
    if where == "s3":
        for tar in tars:
            open_store(s3).write(tar.name, tar.read_bytes())
        faults = s3_faults(seed=3, rate=0.3, kinds=("error", "busy", "cut", "drop"))
        faults.outage(1.5, after=4)
        assert_same_views(streamed([f"{s3}/{tar.name}" for tar in tars]), reference)
    else:
        faults = Faults()
        files = {f"/{tar.name}": tar.read_bytes() for tar in tars}
        with serving(FaultyServer(faults, files, ranges=where == "web")) as server:
            faults.plan("cut", "error", "busy", "drop", "cut")
            faults.outage(1.5, after=8)
            assert_same_views(streamed([f"{server.url}/{tar.name}" for tar in tars]), reference)
        assert faults.counts == {"cut": 2, "error": 1, "busy": 1, "drop": 1} | {"outage": faults.counts["outage"]}
    assert sum(faults.counts.values()) >= 5


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (
            "missing",
            r"/none\.tar cannot be read after its first 0 images: HTTP 404 Not Found; repair it, or leave it out",
        ),
        (
            "silence",
            r"/0\.tar cannot be read after its first 0 images: no data for 1 s, for \d+ s \(FASTMOCO_STORE_WAIT",
        ),
        ("outage", r"/0\.tar cannot be read after its first 0 images: the server closed the connection, for \d+ s"),
    ],
)
def test_a_stream_that_stays_out_of_reach_ends_with_its_cause(tars, monkeypatch, fault, cause):
    from shards.storage.network import Network, using

    monkeypatch.setenv("FASTMOCO_STORE_WAIT", "1")
    faults = Faults()
    network = Network(timeout=1.0) if fault == "silence" else Network()
    with serving(FaultyServer(faults, {"/0.tar": tars[0].read_bytes()})) as server, using(network):
        faults.plan(*["silence"] * 20) if fault == "silence" else faults.outage(600 if fault == "outage" else 0)
        with pytest.raises(StreamError, match=f"^{server.url}{cause}"):
            streamed([f"{server.url}/{'none' if fault == 'missing' else '0'}.tar"])
    assert faults.requests <= 4, "nothing is asked without end, and a missing tar once"
