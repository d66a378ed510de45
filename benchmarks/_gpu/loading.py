"""The data path on the card: views, rates of the loader and of training, and a loop that must not wait."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console

import _rates
from _arguments import Args
from _gpu.suite import Row, Rows, Suite
from _sources import endless
from backends import compared, dali, unusual
from fastmoco.ranks.world import World
from fastmoco.trainer.soundness import looked_at
from fastmoco.trainer.step import TrainStep
from fastmoco.trainer.window import Window
from pipelines import PipelineOptions, TwoViewPipeline, build
from shards import ShardSet


def views(suite: Suite) -> Rows:
    """DALI's views against the torch backend's from the same draws: by operation, decoder load and kind of JPEG."""
    with ShardSet(suite.shards) as shards:
        count = min(8 if suite.tiny else 128, len(shards))
        photos = [shards.read(number) for number in range(count)]
        sizes = shards.sizes(np.arange(count))
    for kind, images in {"packed": photos, **unusual(photos[: count // 4])}.items():
        for load in (0.0, 1.0) if suite.device == "cuda" else (0.0,):
            others = {"DALI": dali(len(images), suite.on, load)}
            for name, difference in compared(images, sizes[: len(images)], suite.image_size, others):
                label = {"images": kind, "decoder_load": load, "views": name.removeprefix("DALI: ")}
                yield label, partial(_levels, difference)


def torch_loader(suite: Suite) -> Rows:
    """The torch backend's loader alone, by threads."""
    for threads in sorted({min(count, suite.cores) for count in (8, 14, 16)}):
        yield {"threads": threads}, partial(_loader_rate, suite, pipeline="torch", threads=threads)


def dali_loader(suite: Suite) -> Rows:
    """DALI's loader alone, by threads and decoder load."""
    for threads in sorted({min(count, suite.cores) for count in (4, 8, 14)}):
        for load in (0.0, 0.65, 1.0) if suite.device == "cuda" else (0.65,):
            changes = {"threads": threads, "decoder_load": load}
            yield changes, partial(_loader_rate, suite, pipeline="dali", **changes)


def training(suite: Suite, backend: str) -> Rows:
    """Loader, model and both together, and the time spent waiting for data."""
    yield {"backend": backend}, partial(_training_rates, suite, backend)


def loop(suite: Suite, backend: str) -> Rows:
    """Whole iterations of the training loop in which no operation of torch may wait for the device."""
    for precision in ("bf16", "fp16") if suite.device == "cuda" else ("fp32",):
        yield {"precision": precision}, partial(_loop_without_waiting, suite, backend, precision)


def _levels(difference: torch.Tensor) -> Row:
    """Mean and largest difference in levels of 255, and the share of values that differ by more than one level."""
    mean, largest, over = difference.mean(), difference.max(), (difference > 1).double().mean()
    return {"mean": round(mean.item(), 3), "largest": round(largest.item(), 1), "over_one": round(over.item(), 5)}


@contextmanager
def _pipeline(suite: Suite, dtype: torch.dtype = torch.float32, **changes: Any) -> Iterator[TwoViewPipeline]:
    config = suite.config(**changes)
    options: PipelineOptions = config
    with (
        ShardSet(suite.shards) as shards,
        build(
            shards, config.view_pair, options, global_batch=suite.batch_size, device=suite.on, dtype=dtype
        ) as pipeline,
    ):
        yield pipeline


def _args(suite: Suite) -> Args:
    return Args(steps=2, repeats=1) if suite.tiny else Args(seconds=2.0, repeats=2)


def _loader_rate(suite: Suite, **changes: Any) -> Row:
    dtype = torch.bfloat16 if suite.device == "cuda" else torch.float32
    with _pipeline(suite, dtype, **changes) as pipeline:
        rates = [suite.batch_size / _rates.stretch(pipeline, None, _args(suite))[0] for _ in range(2)]
    return {"imgs_per_sec": round(statistics.median(rates), 1), "lowest": round(min(rates), 1)}


def _training_rates(suite: Suite, backend: str) -> Row:
    config, args = suite.config(pipeline=backend), _args(suite)
    run, here = partial(_rates.stretch, args=args), World(0, 1, suite.on)
    with ShardSet(suite.shards) as shards:
        rates, measured = _rates.rates_on(shards, config, here, run, args.repeats, Console(quiet=True))
    found = _rates.summary(rates, config, measured)
    names = ("loader_imgs_per_sec", "model_imgs_per_sec", "end_to_end_imgs_per_sec", "efficiency", "data_wait")
    return {name: round(found[name], 3) for name in names} | {"backend": found["backend"]}


def _loop_without_waiting(suite: Suite, backend: str, precision: str) -> Row:
    """RuntimeError of torch if an operation waits."""
    step = TrainStep(suite.config(precision=precision), suite.on, 1000)
    window, count = Window(suite.on), 3 if suite.tiny else 10
    with _pipeline(suite, step.dtype or torch.float32, pipeline=backend) as pipeline:
        source = endless(pipeline)
        for number in range(3):
            step(next(source), number)
        suite.settle()
        if suite.device == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            for number in range(3, 3 + count):
                window.add(step(next(source), number), 0.0)
            looked_at(step)  # as for a log line
        finally:
            if suite.device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        source.close()
    suite.settle()
    return {"iterations": count, "loss_is_finite": bool(np.isfinite(window.state()["sums"][0]))}
