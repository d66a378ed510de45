"""Where a step goes: parts that add up to it, of a real run and of events as a GPU's profile has them."""

from __future__ import annotations

import gzip
import json
import re
from types import SimpleNamespace

import pytest
import torch

from fastmoco.model import encoders
from fastmoco.spans import PREFIX, SPANS, span
from fastmoco.trainer import profiling
from fastmoco.trainer.profiling import Profile, beside, in_words, parts
from tests.fastmoco.test_train import flags
from tests.support.runs import narrow_resnet10

HOST, GPU = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA


def test_a_run_prints_where_its_steps_go_and_writes_a_trace(shard_sets, tmp_path, in_process, monkeypatch):
    monkeypatch.setitem(encoders._BUILDERS, "resnet10", narrow_resnet10(1 / 8))
    monkeypatch.setattr(profiling, "WARM_UP", 1)
    run, small = tmp_path / "run", ["--arch", "resnet10", "--steps", "2", "--profile", "1"]
    said = in_process("-m", "fastmoco.train", *flags(shard_sets, run, *small)).stderr
    rows = dict(re.findall(r"^  (\S[a-z -]*?) +[\d.]+ ms +(-?[\d.]+) %$", said, re.MULTILINE))
    assert [*rows] == [*SPANS[:9], "all-reduce", "optimiser", "other", "step"]
    shares = {name: float(share) for name, share in rows.items()}
    assert sum(shares.values()) == pytest.approx(200, abs=0.6) and shares["step"] == 100
    assert min(shares.values()) >= 0 and shares["all-reduce"] == 0
    trace = json.loads(gzip.decompress((run / "profile.json.gz").read_bytes()))
    convolved = {event["ts"] for event in trace["traceEvents"] if event.get("name") == "aten::convolution"}
    for name in SPANS:
        spans = [event for event in trace["traceEvents"] if event.get("name") == PREFIX + name]
        assert len(spans) == 1 + (name == "shuffle")  # sent before the queries are encoded, gathered after the keys
        within = any(span["ts"] <= at < span["ts"] + span["dur"] for span in spans for at in convolved)
        assert within is (name in ("query forward", "key forward"))


def test_a_run_that_is_too_short_for_its_profile_says_so(tmp_path, caplog):
    with Profile(3, tmp_path, torch.device("cpu")) as profile:
        profile.after_step()
    assert caplog.messages == ["--profile: the run ended after 1 of the 11 steps that it needs"]
    with Profile(0, tmp_path, torch.device("cpu")) as profile:
        profile.after_step()
    assert len(caplog.messages) == 1


def event(name, start, end, kernels=(), device=HOST):
    return SimpleNamespace(
        name=name, time_range=SimpleNamespace(start=start, end=end), device_type=device,
        kernels=[SimpleNamespace(name=kernel, duration=duration) for kernel, duration in kernels],
    )  # fmt: skip


def test_on_a_cpu_an_exchange_counts_where_the_backward_pass_does_not_hide_it():
    events = [
        event(PREFIX + "query forward", 0, 1000),
        event(PREFIX + "backward", 1000, 5000),
        event("autograd::engine::evaluate_function: AddmmBackward0", 1000, 2500),
        event("autograd::engine::evaluate_function: ConvolutionBackward0", 2500, 4000),
        event("gloo:all_reduce", 2000, 3000),
        event("gloo:all_reduce", 3500, 4900),
    ]
    found = {part.name: round(1e6 * part.seconds) for part in parts(events, 1, 6e-3, on_gpu=False)}
    assert {name: time for name, time in found.items() if time} == {
        "query forward": 1000, "backward": 3100, "all-reduce": 900, "other": 1000
    }  # fmt: skip
    (exchanged,) = beside(events, 1, on_gpu=False)
    assert round(1e6 * exchanged.seconds) == 2400


def test_on_a_gpu_kernels_count_for_the_part_that_launched_them():
    nccl, copy = "ncclDevKernel_AllReduce_Sum_f32", "Memcpy HtoD (Pinned -> Device)"
    events = [
        event(PREFIX + "query forward", 0, 100),
        event("aten::convolution", 10, 20, [("conv", 2000), (copy, 5)]),
        event(PREFIX + "shuffle", 100, 120),
        event("c10d::alltoall_", 105, 110, [("ncclDevKernel_SendRecv", 500)]),
        event(PREFIX + "backward", 200, 400),
        event("ConvolutionBackward0", 250, 260, [("dgrad", 3000)]),
        event("c10d::allreduce_", 270, 280, [(nccl, 700)]),
        event("aten::copy_", 500, 510, [(copy, 300)]),
        # the device's side
        event(PREFIX + "query forward", 1000, 3000, device=GPU),
        event("conv", 1000, 3000, device=GPU),
        event("ncclDevKernel_SendRecv", 2800, 3300, device=GPU),
        event("dgrad", 3300, 6300, device=GPU),
        event(nccl, 6200, 6900, device=GPU),
        event(copy, 6400, 6700, device=GPU),
    ]
    found = {part.name: round(1e6 * part.seconds) for part in parts(events, 1, 8e-3, on_gpu=True)}
    assert {name: time for name, time in found.items() if time} == {
        "query forward": 2000, "shuffle": 300, "backward": 3000, "all-reduce": 600, "other, and waits of the GPU": 2100
    }  # fmt: skip
    assert [round(1e6 * part.seconds) for part in beside(events, 1, on_gpu=True)] == [1200, 305]
    assert in_words(parts(events, 1, 8e-3, True), 1, 8e-3, ())[-1].split() == ["step", "8.00", "ms", "100.0", "%"]


def test_a_name_costs_nothing_without_a_profiler():
    assert span("loss") is span("backward")
