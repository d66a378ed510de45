"""Training on a stream of tars."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
import torch

from tests.support.runs import metrics
from tests.support.tars import cut_off, write_tar

SCRIPT = Path(__file__).parent / "scripts" / "train_and_record.py"
SMALL = ["--recipe", "demo", "--image-size", "32", "--batch-size", "16", "--queue-size", "40", "--log-every", "1"]


@pytest.fixture
def stream(photos, tmp_path):
    """Pattern of five tars of unequal length (96 images), with img2dataset's count files beside them."""
    files = sorted((photos / "train").rglob("*.jpg"))
    folder = tmp_path / "tars"
    folder.mkdir()
    for number, (first, last) in enumerate([(0, 40), (40, 45), (45, 70), (70, 90), (90, 96)]):
        members = {}
        for place, path in enumerate(files[first:last], first):
            members |= {f"{place:06d}.jpg": path.read_bytes(), f"{place:06d}.txt": b"a caption"}
        write_tar(folder / f"{number:05d}.tar", members)
        (folder / f"{number:05d}_stats.json").write_text(json.dumps({"successes": last - first}))
    return f"{folder}/{{00000..00004}}.tar"


def records(run):
    lines = metrics(run)
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def flags(stream, run, *more):
    return [*SMALL, "--stream", stream, "--out", run, "--threads", "2", "--shuffle-buffer", "20", *more]


def train(command, stream, run, *more, start=("-m", "fastmoco.train"), **options):
    return command(sys.executable, *start, *flags(stream, run, *more), **options)


def test_a_killed_run_on_a_stream_continues_bit_for_bit(stream, tmp_path, command):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = ["--steps", "9", "--checkpoint-every", "4"]
    said = train(command, stream, whole, *more).stderr
    assert "96 samples in stream order, 6 steps of 16 images per epoch" in said
    assert said.count("streaming 5 tars") == 1
    killed = train(command, stream, cut, *more, start=[SCRIPT], env={"KILL_AT": "6"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    again = train(command, stream, cut, *more)
    assert "4 of 9 steps are done" in again.stderr
    assert records(cut) == records(whole) and len(records(cut)) == 9
    config = json.loads((whole / "config.json").read_text())
    assert config["stream"] == stream and config["shuffle_buffer"] == 20 and config["images_per_epoch"] is None
    other = train(command, stream, cut, "--steps", "10", "--images-per-epoch", "64", check=False)
    assert other.returncode == 2 and "--images-per-epoch was not given, now 64" in other.stderr


@pytest.mark.distributed
def test_two_ranks_train_on_unequal_tars(stream, tmp_path, torchrun):
    run = tmp_path / "run"
    more = ["--steps", "8", "--images-per-epoch", "64"]
    torchrun(2, "-m", "fastmoco.train", *SMALL, "--stream", stream, "--out", run, "--threads", "1", *more)
    assert list(records(run)) == list(range(1, 9))
    state = torch.load(run / "checkpoints" / "step-00000008.pt", weights_only=True)
    assert state["data"]["samples"] == 64


def test_mistakes_end_in_one_line(stream, tmp_path, in_process):
    for pattern, more, message in (
        (f"{tmp_path}/none.tar", [], "none.tar is the first"),
        (stream, ["--shards", "set"], "are both given"),
        (stream, ["--images-per-epoch", "3"], "has 3 samples, fewer than --batch-size 16"),
    ):
        arguments = flags(pattern, tmp_path / "run", "--steps", "1", *more)
        result = in_process("-m", "fastmoco.train", *arguments, check=False)
        assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
    cut_off(tmp_path / "tars" / "00002.tar", 5000)
    result = in_process("-m", "fastmoco.train", *flags(stream, tmp_path / "run", "--steps", "6"), check=False)
    assert result.returncode == 2 and "00002.tar cannot be read after its first" in result.stderr
