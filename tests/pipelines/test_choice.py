"""The backend that `auto` chooses on a CUDA device, its threads, nvJPEG, and memory kept for a stream."""

from __future__ import annotations

import importlib.util
import logging
import os

import numpy as np
import pytest
import torch

from fastmoco.demo.made import make_images
from pipelines import choice, nvjpeg
from pipelines._kept import Kept
from pipelines._threads import cores_of_rank
from shards import PackOptions, ShardSet, pack

CUDA = torch.device("cuda")


def _found(name):
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec(name) is not None


@pytest.fixture
def dali_and_nvjpeg(monkeypatch):
    monkeypatch.setattr(choice, "installed", lambda: True)
    monkeypatch.setattr(nvjpeg, "problem", lambda: None)


@pytest.mark.usefixtures("dali_and_nvjpeg")
def test_auto_chooses_the_higher_estimate():
    backend, reason = choice.choose("auto", CUDA, threads=14)
    assert backend == "dali"
    assert "5,600 images/s on 14 threads" in reason and "override with --pipeline torch" in reason
    backend, reason = choice.choose("auto", CUDA, threads=18)
    assert backend == "torch"
    assert (
        "7,200" in reason
        and "7,000" in reason
        and "not measured" in reason
        and "override with --pipeline dali" in reason
    )
    assert choice.choose("dali", CUDA, threads=64) == ("dali", "as requested")
    assert choice.choose("torch", CUDA, threads=1) == ("torch", "as requested")


def test_without_nvjpeg_auto_is_torch_and_dali_warns(monkeypatch, caplog):
    monkeypatch.setattr(choice, "installed", lambda: True)
    monkeypatch.setattr(nvjpeg, "problem", lambda: "nvJPEG cannot be loaded (x): pip install nvidia-nvjpeg")
    backend, reason = choice.choose("auto", CUDA, threads=4)
    assert backend == "torch"
    assert "pip install nvidia-nvjpeg" in reason
    with caplog.at_level(logging.WARNING):
        backend, reason = choice.choose("dali", CUDA, threads=4)
    assert backend == "dali"
    assert "decodes on the CPU" in reason
    assert "pip install nvidia-nvjpeg" in caplog.text


def test_an_unloadable_nvjpeg_is_reported_with_its_remedy(tmp_path):
    major = (torch.version.cuda or "13").split(".")[0]
    (tmp_path / f"libnvjpeg.so.{major}").write_bytes(b"no library")
    problem = nvjpeg.problem([tmp_path])
    assert problem is not None
    assert str(tmp_path) in problem and "pip install nvidia-nvjpeg" in problem


@pytest.mark.dali
@pytest.mark.skipif(not _found("nvidia.dali"), reason="needs NVIDIA DALI, whose packages bring nvJPEG")
def test_the_nvjpeg_of_dalis_packages_is_found(monkeypatch):
    assert nvjpeg.problem() is None
    monkeypatch.setattr(nvjpeg, "_OLDEST", {12: (99, 0, 0), 13: (99, 0, 0)})
    problem = nvjpeg.problem()
    assert problem is not None and "is older than 99.0.0: pip install --upgrade nvidia-nvjpeg" in problem


def test_two_cores_are_left_to_the_launching_threads(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    cores = cores_of_rank()
    assert cores == len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert choice.default_threads(torch.device("cpu")) == cores
    monkeypatch.setattr(choice, "cores_of_rank", lambda: 16)
    assert choice.default_threads(CUDA) == 14
    assert choice.reading_threads("dali", CUDA, 14) == 4
    assert choice.reading_threads("torch", CUDA, 14) == choice.reading_threads("dali", torch.device("cpu"), 14) == 14
    monkeypatch.setattr(choice, "cores_of_rank", lambda: 2)
    assert choice.default_threads(CUDA) == 1


def test_the_size_hint_leaves_out_the_largest_images(tmp_path):
    make_images(tmp_path / "images", classes=1, per_class=40, size=(48, 64), seed=0)
    make_images(tmp_path / "images", classes=1, per_class=1, size=(300, 200), seed=1, first=40)
    pack(PackOptions(src=tmp_path / "images", out=tmp_path / "set", workers=1), progress=False)
    with ShardSet(tmp_path / "set") as shards:
        assert sorted({tuple(size) for size in shards.sizes(np.arange(41)).tolist()}) == [(48, 64), (300, 200)]
        assert choice.size_hint(shards, 256) == (48, 64)
        assert choice.size_hint(shards, 1_000_000) is None  # 9 GB


class _Event:
    """An event that is done when a test says so, or by waiting for it."""

    def __init__(self) -> None:
        self.done = self.waited = False

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.done = self.waited = True


def test_objects_are_kept_until_their_event_is_done():
    kept, events = Kept(), [_Event() for _ in range(5)]
    kept.keep(events[0])
    kept.keep(events[1])
    assert len(kept) == 2 and not events[0].waited
    kept.keep(events[2])  # a third one waits for the first
    assert events[0].waited and not events[1].waited
    assert len(kept) == 2
    events[1].done = events[2].done = True
    kept.keep(events[3])
    assert len(kept) == 1 and not events[2].waited
    kept.keep(events[4])
    kept.clear()
    assert len(kept) == 0 and events[3].waited and events[4].waited
