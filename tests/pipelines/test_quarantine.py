"""Bad images that no backend's checksum shows: replaced alike with and without knowledge of them, and recorded once."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from fastmoco.demo.made import make_images
from pipelines import PipelineOptions, ViewSpec, build
from pipelines._lines import Lines
from pipelines._samples import Replacement
from pipelines.errors import TooManyBadImages
from pipelines.quarantine import Bound, Quarantine, rewind
from shards import PackOptions, ShardSet, pack
from tests.support.views import assert_same_views

SPEC = ViewSpec.moco_v2(32)
BATCH = 40
"""Enough for DALI to parse headers in its threads and in the caller at once."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quarantine")
    make_images(folder / "images", classes=2, per_class=41, size=(48, 64), seed=0)
    pack(PackOptions(src=folder / "images", out=folder / "set", workers=1, shard_size=41), progress=False)
    return folder / "set"


@pytest.fixture
def shards(packed, monkeypatch):
    """A set of which images 3, 40 and 70 are cut although their checksums are right."""
    with ShardSet(packed) as opened:
        check, tried = opened.check, []

        def damaged(sample):
            data = check(sample)
            tried.append(sample)
            return data[: len(data) // 2] if sample in (3, 40, 70) else data

        monkeypatch.setattr(opened, "check", damaged)
        opened.tried = tried
        yield opened


def _ids(shards, run, epochs, start_step=0, name="torch"):
    options = PipelineOptions(pipeline=name, threads=2)
    with build(shards, SPEC, options, global_batch=BATCH, seed=4, quarantine=run / "quarantine.jsonl") as pipeline:
        batches = [
            batch.ids for epoch in epochs for batch in pipeline.epoch(epoch, start_step if epoch == epochs[0] else 0)
        ]
        return torch.stack(batches), pipeline.quarantined


def _lines(run):
    return [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["torch", pytest.param("dali", marks=pytest.mark.dali)])
def test_a_continued_run_makes_the_batches_of_one_that_went_through(shards, tmp_path, caplog, name):
    if name == "dali":
        pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI")
    whole, bad = _ids(shards, tmp_path / "whole", range(4), name=name)
    assert bad == 3
    assert sorted(line["sample"] for line in _lines(tmp_path / "whole")) == [3, 40, 70]  # each once in four epochs
    assert all(line["source"] == shards.source(line["sample"]) != "" for line in _lines(tmp_path / "whole"))
    assert not {3, 40, 70} & set(whole.ravel().tolist())
    first, _ = _ids(shards, tmp_path / "part", range(2), name=name)
    before = _lines(tmp_path / "part")
    shards.tried.clear()
    caplog.set_level(logging.INFO, "pipelines")
    second, _ = _ids(shards, tmp_path / "part", range(2, 4), name=name)
    assert torch.equal(torch.cat([first, second]), whole)
    assert not {line["sample"] for line in before} & set(shards.tried)  # known from the file: not read again
    assert _lines(tmp_path / "part") == _lines(tmp_path / "whole")
    assert f"{len(before)} images cannot be decoded, by an earlier start" in caplog.text


def test_a_run_set_back_to_a_checkpoint_has_the_batches_views_and_lines_of_an_undisturbed_one(shards, tmp_path):
    """What cannot be decoded is known after the step back; it is replaced and recorded as at its first discovery."""

    def views(run, first, last):
        """Batches from one step of the run to another, over epochs of two steps."""
        made = []
        with build(
            shards, SPEC, PipelineOptions(pipeline="torch", threads=2), global_batch=BATCH, seed=4,
            quarantine=run / "quarantine.jsonl",
        ) as pipeline:  # fmt: skip
            for epoch in range(first // 2, -(-last // 2)):
                start = max(0, first - 2 * epoch)
                made += list(pipeline.epoch(epoch, start))[: last - 2 * epoch - start]
        return made

    whole = views(tmp_path / "whole", 0, 8)
    for checkpoint, killed_at in ((0, 4), (1, 6), (3, 7)):
        run = tmp_path / str(checkpoint)
        views(run, 0, killed_at)
        listed = (run / "undecodable.jsonl").read_bytes()
        assert len(listed.splitlines()) == 3
        with (run / "quarantine.jsonl").open("ab") as file:
            file.write(b'{"sample": 1, "epo')  # as a crash leaves it
        rewind(run / "quarantine.jsonl", *divmod(checkpoint, 2))
        shards.tried.clear()
        assert_same_views(views(run, checkpoint, 8), whole[checkpoint:])
        assert not {3, 40, 70} & set(shards.tried)
        assert _lines(run) == _lines(tmp_path / "whole")
        assert (run / "undecodable.jsonl").read_bytes() == listed


def _bad(*samples):
    """A batch whose images from 0 on were replaced."""
    replaced = {
        slot: Replacement(sample, "shard-000000.tar", f"{sample:012d}", f"the {sample} bytes at 7 are no JPEG", 99)
        for slot, sample in enumerate(samples)
    }
    return SimpleNamespace(replaced=replaced)


def test_too_many_bad_images_end_a_run_over_all_ranks_and_starts(tmp_path):
    file, bound = tmp_path / "run" / "quarantine.jsonl", Bound(4, 200, "/set")
    first, second = (Quarantine(file, "d", rank, bound) for rank in (0, 1))
    first.report(_bad(1, 2), 0, 0)
    second.report(_bad(2, 3), 0, 0)
    first.report(_bad(1, 2), 1, 0)
    again = Quarantine(file, "d", 0, bound)
    again.report(_bad(4), 2, 0)
    with pytest.raises(TooManyBadImages) as caught:
        second.report(_bad(5), 2, 1)
    assert str(caught.value) == (
        "5 of 200 images are bad, and --max-bad-images allows 4 (5 times: the 2 bytes at 7 are no JPEG). "
        f"{file} lists them. Find the damage with `fastmoco verify /set`, repair the set and run the same command "
        "again, or allow more"
    )
    assert caught.value.exit_code == 1
    mended = Quarantine(file, "d", 0, bound)
    mended.report(_bad(), 3, 0)
    mended.report(_bad(1), 3, 1)  # known: a set that was repaired for the most part goes on


def test_the_bound_is_a_share_of_the_set_or_a_number(shards, tmp_path):
    assert [PipelineOptions().bad_images_of(n) for n in (50, 10_000, 1_000_000)] == [100, 100, 10_000]
    assert [PipelineOptions(max_bad_images=bad).bad_images_of(1000) for bad in (0, 0.005, 7)] == [0, 5, 7]
    options = PipelineOptions(pipeline="torch", threads=2, max_bad_images=0.025)  # 2 of 82
    with (
        build(shards, SPEC, options, global_batch=BATCH, seed=4, quarantine=tmp_path / "quarantine.jsonl") as pipeline,
        pytest.raises(TooManyBadImages, match="3 of 82 images are bad, and --max-bad-images allows 2"),
    ):
        for epoch in range(4):
            list(pipeline.epoch(epoch))


def test_a_quarantine_that_cannot_be_written_ends_no_run(tmp_path, caplog):
    file = tmp_path / "quarantine.jsonl"
    file.mkdir()
    bad = Quarantine(None, None, 0, None)
    bad._lines = Lines(file)
    bad.report(_bad(1), 0, 0)
    assert "quarantine.jsonl cannot be written: Is a directory" in caplog.text
    file.rmdir()
    bad.report(_bad(2), 0, 1)
    assert [line["sample"] for line in map(json.loads, file.read_text().splitlines())] == [1, 2]


def test_lines_of_another_set_and_of_older_runs_are_not_believed(shards, tmp_path):
    fresh, _ = _ids(shards, tmp_path / "fresh", [0])
    line = {"sample": 5, "shard": "shard-000000.tar", "key": "000000000005", "cause": "cannot be decoded: x"}
    texts = [json.dumps(line), json.dumps({**line, "undecodable_in": "f" * 64}), '{"sample": 7, "undecodab', "[]"]
    run = tmp_path / "run"
    run.mkdir()
    (run / "quarantine.jsonl").write_text("\n".join(texts) + "\n")
    ids, _ = _ids(shards, run, [0])
    assert torch.equal(ids, fresh)
    assert 5 in ids


_TRAIN = """
import sys, torch
from pipelines import PipelineOptions, ViewSpec, build
from shards import ShardSet
with ShardSet(sys.argv[1]) as shards:
    check = shards.check
    def as_once_packed(sample):  # packing mends this today: a segment of length 1, which libjpeg passes over
        data = check(sample)
        return data[:2] + b"\\xff\\xe5\\0\\1" + data[2:] if sample == 20 else data
    shards.check = as_once_packed
    for name in ("torch", "dali"):
        options = PipelineOptions(pipeline=name, threads=2)
        with build(shards, ViewSpec.moco_v2(32), options, global_batch=40) as pipeline:
            ids = torch.stack([batch.ids for epoch in range(30) for batch in pipeline.epoch(epoch)])
            print(name, pipeline.quarantined, 20 in ids, ids.sum().item())
"""


@pytest.mark.dali
def test_headers_that_dali_rejects_end_no_run_and_cost_no_image(packed):
    """In a process of its own: DALI ends it with a segmentation fault if it is given such a header."""
    pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI")
    done = subprocess.run([sys.executable, "-c", _TRAIN, packed], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    of_torch, of_dali = (line.split() for line in done.stdout.splitlines())
    assert of_torch[1:] == of_dali[1:] == ["0", "True", of_torch[3]]
