"""Bad images that no backend's checksum shows: replaced alike with and without knowledge of them, and recorded once."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest
import torch

from fastmoco.demo.made import make_images
from pipelines import PipelineOptions, ViewSpec, build
from shards import PackOptions, ShardSet, pack

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
    assert not {3, 40, 70} & set(whole.ravel().tolist())
    first, _ = _ids(shards, tmp_path / "part", range(2), name=name)
    before = _lines(tmp_path / "part")
    shards.tried.clear()
    caplog.set_level(logging.INFO, "pipelines")
    second, _ = _ids(shards, tmp_path / "part", range(2, 4), name=name)
    assert torch.equal(torch.cat([first, second]), whole)
    assert not {line["sample"] for line in before} & set(shards.tried)  # known from the file: not read again
    assert _lines(tmp_path / "part")[: len(before)] == before
    assert len(_lines(tmp_path / "part")) == len({line["sample"] for line in _lines(tmp_path / "part")})
    assert f"{len(before)} images of {tmp_path / 'part' / 'quarantine.jsonl'} cannot be decoded" in caplog.text


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
    done = subprocess.run([sys.executable, "-c", _TRAIN, packed], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    of_torch, of_dali = (line.split() for line in done.stdout.splitlines())
    assert of_torch[1:] == of_dali[1:] == ["0", "True", of_torch[3]]
