"""Rates of the training step, its heaviest kernels, and the original formulation's step beside it."""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile

import step as against_original
from _gpu.suite import Row, Rows, Suite
from _peers.compare import Settings, compare
from fastmoco.trainer.step import TrainStep
from fastmoco.trainer.window import Window
from pipelines import TwoViews
from shards import ShardSet

_SHOWN = 20  # kernels of the profile


def rates(suite: Suite) -> Rows:
    """Eager steps by precision, BatchNorm, convolution algorithms and batch size."""
    small, splits = max(2, suite.batch_size // 8), 2 if suite.tiny else 8  # groups of four images at least
    variants: list[tuple[str, dict[str, Any]]] = [
        ("eager", {}),
        ("fused BatchNorm", {"batch_norm_kernel": "fused"}),
        ("fp16", {"precision": "fp16"}),
        ("cudnn.benchmark", {}),
        (f"{splits} BN splits", {"bn_splits": splits}),
        (f"{splits} BN splits, fused BatchNorm", {"bn_splits": splits, "batch_norm_kernel": "fused"}),
        (f"batch {small}", {"batch_size": small}),
        (f"batch {small}, fused BatchNorm", {"batch_size": small, "batch_norm_kernel": "fused"}),
        (f"batch {small}, CUDA graphs", {"batch_size": small, "cuda_graphs": True}),
        (
            f"batch {small}, fused BatchNorm, CUDA graphs",
            {"batch_size": small, "batch_norm_kernel": "fused", "cuda_graphs": True},
        ),
    ]
    if suite.device == "cpu":  # no cuDNN and no graphs, and fp16 is for GPUs
        gpu_only = ("fp16", "cudnn.benchmark")
        variants = [(n, changes) for n, changes in variants if n not in gpu_only and "cuda_graphs" not in changes]
    for name, changes in variants:
        yield {"variant": name}, partial(_rate, suite, changes, search=name == "cudnn.benchmark")


def compiled(suite: Suite) -> Rows:
    """The step with encoders compiled by torch.compile."""
    yield {"variant": "compiled"}, partial(_rate, suite, {"compile": True}, search=False)


def profiled(suite: Suite) -> Rows:
    """The heaviest kernels of one step, and the share of its time in which the device idles."""
    config = suite.config()
    step = TrainStep(config, suite.on, 1000)
    batch = _batch(suite, config.batch_size, step.dtype)
    for number in range(3):
        step(batch, number)
    suite.settle()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if suite.device == "cuda" else [])]
    with profile(activities=activities) as found:
        step(batch, 3)
        suite.settle()
    kind = torch.profiler.DeviceType.CUDA if suite.device == "cuda" else torch.profiler.DeviceType.CPU
    kernels = [event for event in found.events() or () if event.device_type == kind]
    if suite.device == "cpu":
        kernels = [event for event in kernels if not event.cpu_children]  # the innermost operations
    times: dict[str, list[float]] = defaultdict(list)
    for event in kernels:
        times[event.name].append(event.time_range.elapsed_us() / 1e3)
    busy = sum(map(sum, times.values()))
    span = (max(event.time_range.end for event in kernels) - min(event.time_range.start for event in kernels)) / 1e3
    whole = {"ms": round(span, 3), "launches": len(kernels), "idle_share": round(max(0.0, 1 - busy / span), 3)}
    yield {"kernel": "all"}, lambda: whole
    for name, each in sorted(times.items(), key=lambda item: -sum(item[1]))[:_SHOWN]:
        figures = {"ms": round(sum(each), 3), "launches": len(each), "share": round(sum(each) / busy, 3)}
        yield {"kernel": name[:100]}, partial(dict, figures)


def original(suite: Suite) -> Rows:
    """The original formulation's step and loader on the same card and cores."""
    sizes = {"arch": suite.arch, "batch_size": suite.batch_size, "image_size": suite.image_size}
    queue = 256 * suite.batch_size

    def steps() -> Row:
        options = {"precision": suite.low, "steps": 3 if suite.tiny else 10, "device": suite.device}
        found = against_original.measure(against_original.Args(**sizes, queue_size=queue, **options))["imgs_per_sec"]
        return {f"{name}_imgs_per_sec": round(rate, 1) for name, rate in found.items()}

    def loaders() -> Row:
        seconds, images = (0.5, 64) if suite.tiny else (3.0, 4096)
        only = ("torch", "original")
        settings = Settings(suite.batch_size, suite.image_size, suite.cores, images, seconds, 1, only)
        with ShardSet(suite.shards) as shards:
            rows = compare(shards, settings, Console(quiet=True))["rows"]
        names = {"torch": "fastmoco_imgs_per_sec", "original": "original_imgs_per_sec"}
        return {names[row["name"]]: round(row["imgs_per_sec"], 1) for row in rows} | {"cores": suite.cores}

    yield {"what": "step"}, steps
    yield {"what": "loader"}, loaders


def _rate(suite: Suite, changes: dict[str, Any], search: bool) -> Row:
    """Rate, waits of the host, its share of the time, and peak memory of a step on views in memory."""
    config = suite.config(**changes)
    step, window = TrainStep(config, suite.on, 1000), Window(suite.on)
    batch = _batch(suite, config.batch_size, step.dtype)
    count = 2 if suite.tiny else 20
    torch.backends.cudnn.benchmark = search
    for number in range(2 if suite.tiny else 5):  # loads code and selects convolution algorithms
        step(batch, number)
    suite.settle()
    if suite.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with _waits_counted(suite) as waits:
        begun = time.perf_counter()
        for number in range(5, 5 + count):
            window.add(step(batch, number), 0.0)
        launched = time.perf_counter() - begun
    suite.settle()
    seconds = time.perf_counter() - begun
    torch.backends.cudnn.benchmark = False
    row: Row = {
        "batch_size": config.batch_size,
        "precision": str(step.dtype or torch.float32).removeprefix("torch."),
        "imgs_per_sec": round(count * config.batch_size / seconds, 1),
    }
    if suite.device == "cuda":
        row |= {
            "host_share": round(launched / seconds, 3),  # of the time, in which the host launched work
            "host_waits": len(waits) / count,  # per step
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        }
    return row


@contextmanager
def _waits_counted(suite: Suite) -> Iterator[list[Any]]:
    """A list that gets an entry for each time torch makes the host wait for the device."""
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        if suite.device == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            if suite.device == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def _batch(suite: Suite, count: int, dtype: torch.dtype | None) -> TwoViews:
    shape = (count, 3, suite.image_size, suite.image_size)
    query, key = (
        torch.randn(shape, device=suite.on, dtype=dtype or torch.float32).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    return TwoViews(query, key, torch.arange(count))
