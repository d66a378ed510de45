"""--deterministic: what it sets, that it changes no number on a CPU, and that it makes a run on a GPU repeatable."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastmoco.checkpoints import checkpoint
from fastmoco.flags import ConfigError
from fastmoco.model import encoders
from fastmoco.recipes import recipe
from fastmoco.trainer.determinism import deterministic
from fastmoco.trainer.step import TrainStep
from pipelines import TwoViews
from tests.support.runs import narrow_resnet10

SCRIPT = Path(__file__).parent / "scripts" / "train_and_record.py"
SETTINGS = [
    {"mechanism": "queue", "bn_splits": 2, "symmetric": True},
    {"mechanism": "end-to-end", "head": "linear"},
    {"mechanism": "memory-bank"},
    {"batch_norm_kernel": "fused", "bn_splits": 2},
]


def set_now():
    cudnn = torch.backends.cudnn
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark


def test_torch_cudnn_and_cublas_are_set_for_as_long_as_the_run(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = set_now()
    with deterministic(False):
        assert set_now() == before and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with pytest.raises(ZeroDivisionError), deterministic(True):
        assert set_now() == (True, True, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        _ = 1 / 0
    assert set_now() == before


def test_a_workspace_of_the_users_is_kept_or_refused(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    before = set_now()
    with pytest.raises(ConfigError, match="is ':0:0', with which cuBLAS is not deterministic; unset it"):
        deterministic(True).__enter__()
    assert set_now() == before


@pytest.mark.parametrize("settings", SETTINGS)
def test_steps_on_a_cpu_are_the_same_with_it(one_thread, monkeypatch, settings):
    monkeypatch.setitem(encoders._BUILDERS, "resnet10", narrow_resnet10(1 / 8))
    config = replace(recipe("demo"), batch_size=8, image_size=32, queue_size=29, precision="fp32", **settings)
    generator = torch.Generator().manual_seed(0)
    batches = [TwoViews(*torch.randn(2, 8, 3, 32, 32, generator=generator), torch.arange(8)) for _ in range(2)]
    states = []
    for wanted in (False, True):
        with deterministic(wanted):
            train = TrainStep(config, torch.device("cpu"), 2, samples=40)
            losses = [train(batch, step).loss.detach() for step, batch in enumerate(batches)]
            states.append({**dict(enumerate(losses)), **train.model.state_dict()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def run_twice(command, shard_sets, folder, *more):
    """The checkpoints at step 8 of a run with --deterministic, whole, and killed after step 5 and continued."""
    small = ["--recipe", "demo", "--image-size", "32", "--batch-size", "16", "--queue-size", "40", "--deterministic"]
    arguments = [*small, "--shards", shard_sets / "train", "--steps", "8", "--checkpoint-every", "3", *more]
    said = command(sys.executable, SCRIPT, *arguments, "--out", folder / "whole").stderr
    command(sys.executable, SCRIPT, *arguments, "--out", folder / "cut", env={"KILL_AT": "5"}, check=False)
    assert not (folder / "cut/checkpoints/step-00000008.pt").exists()
    command(sys.executable, SCRIPT, *arguments, "--out", folder / "cut")
    states = [checkpoint.load(folder / name / "checkpoints/step-00000008.pt") for name in ("whole", "cut")]
    return said, *states


def differing(ours, theirs):
    names = [(part, name) for part in ("query_encoder", "key_encoder", "queue") for name in ours[part]]
    return [(part, name) for part, name in names if not torch.equal(ours[part][name], theirs[part][name])]


@pytest.mark.slow
def test_a_run_with_it_continues_bit_for_bit(shard_sets, tmp_path, command):
    said, whole, cut = run_twice(command, shard_sets, tmp_path)
    assert "deterministic algorithms only" in said and whole["config"]["deterministic"]
    assert not differing(whole, cut)


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("kernel", ["torch", "fused"])
def test_a_run_on_a_gpu_with_it_continues_bit_for_bit(shard_sets, tmp_path, command, precision, kernel):
    # 64 pixels and a ResNet-50: the convolutions for which cuDNN has algorithms that are not deterministic
    more = ["--arch", "resnet50", "--image-size", "64", "--precision", precision, "--batch-norm-kernel", kernel]
    _, whole, cut = run_twice(command, shard_sets, tmp_path, *more)
    assert not differing(whole, cut)
