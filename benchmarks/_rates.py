"""Rates of `imgs_per_sec.py`: the loader alone, the model alone, and both together."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from _arguments import Args
from _environment import environment
from _results import write_json
from _sources import endless, shard_set
from fastmoco.config import Config
from fastmoco.recipes import moco_v2
from fastmoco.trainer.loop import view_spec
from fastmoco.trainer.step import TrainStep
from pipelines import TwoViewPipeline, TwoViews, build
from shards import ShardSet

WARM_UP = 2  # steps before each timed stretch


@dataclass(frozen=True)
class Rates:
    """Images per second of each measurement, and the share of time spent waiting for data."""

    loader: list[float]
    model: list[float]
    end_to_end: list[float]
    data_wait: list[float]
    data_wait_beside_sleep: list[float]


def run(args: Args, device: torch.device) -> None:
    """Measure, print the table, and write the figures."""
    config = settings(args, device)
    console = Console()
    with shard_set(args.shards, config.batch_size, config.image_size) as (shards, note):
        step = TrainStep(config, device, 1_000_000)
        make = _pipeline_maker(shards, config, device, step.dtype or torch.float32)
        with make(config.pipeline) as pipeline, make("constant") as constant:
            rates = measure(step, pipeline, constant, args, console)
            result = summary(rates, config, pipeline, device, step.dtype)
    result |= {"shards": note, "samples": len(shards), "environment": environment()}
    console.print(table(result))
    # not the table's caption, which would be wrapped at the table's width
    console.print(f"images: {result['shards']}; loader {result['backend']}: {result['reason']}")
    console.print(verdict(result))
    if args.json:
        write_json(args.json, result)


def settings(args: Args, device: torch.device) -> Config:
    """The recipe moco-v2 with the given sizes, or the defaults for the device."""
    arch, batch_size, image_size = ("resnet50", 256, 224) if device.type == "cuda" else ("resnet18", 32, 64)
    return replace(
        moco_v2(),
        arch=args.arch or arch,
        batch_size=batch_size if args.batch_size is None else args.batch_size,
        image_size=image_size if args.image_size is None else args.image_size,
        pipeline=args.pipeline,
        threads=args.threads,
        precision=args.precision,
        compile=args.compile,
    )


def _pipeline_maker(shards: ShardSet, config: Config, device: torch.device, dtype: torch.dtype):
    def make(backend: Literal["auto", "dali", "torch", "constant"]) -> TwoViewPipeline:
        return build(
            shards, view_spec(config), replace(config, pipeline=backend), global_batch=config.batch_size,
            device=device, dtype=dtype,
        )  # fmt: skip

    return make


def measure(
    step: TrainStep, pipeline: TwoViewPipeline, constant: TwoViewPipeline, args: Args, console: Console
) -> Rates:
    """Measure all rates in turn, `args.repeats` times."""
    rates = Rates([], [], [], [], [])
    batch_size = step.config.batch_size
    for turn in range(args.repeats):
        with console.status(f"loader, model, end to end: {turn + 1} of {args.repeats}"):
            rates.loader.append(batch_size / stretch(pipeline, None, args)[0])
            rates.model.append(batch_size / stretch(constant, step, args)[0])
            seconds, waited = stretch(pipeline, step, args)
            rates.end_to_end.append(batch_size / seconds)
            rates.data_wait.append(waited / seconds)
            pause = batch_size / rates.model[-1]
            seconds, waited = stretch(pipeline, lambda *_, pause=pause: time.sleep(pause), args)
            rates.data_wait_beside_sleep.append(waited / seconds)
    return rates


def stretch(
    pipeline: TwoViewPipeline, step: Callable[[TwoViews, int], object] | None, args: Args
) -> tuple[float, float]:
    """Seconds per step over one measurement, and the part of them spent waiting for data."""
    batches = endless(pipeline)
    for number in range(WARM_UP):
        batch = next(batches)
        if step:
            step(batch, number)
    _settle()
    steps, waited, started = 0, 0.0, time.perf_counter()
    while steps < args.steps if args.steps else steps == 0 or time.perf_counter() - started < args.seconds:
        before = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - before
        if step:
            step(batch, WARM_UP + steps)
        steps += 1
    _settle()
    seconds = time.perf_counter() - started
    batches.close()
    return seconds / steps, waited / steps


def _settle() -> None:
    """Wait until the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summary(
    rates: Rates, config: Config, pipeline: TwoViewPipeline, device: torch.device, dtype: torch.dtype | None
) -> dict[str, Any]:
    """The medians, with the settings, in plain values."""
    loader, model, both = (statistics.median(r) for r in (rates.loader, rates.model, rates.end_to_end))
    return {
        "loader_imgs_per_sec": loader,
        "model_imgs_per_sec": model,
        "end_to_end_imgs_per_sec": both,
        "efficiency": both / min(loader, model),
        "of_shared_cores": both * (1 / loader + 1 / model),
        "data_wait": statistics.median(rates.data_wait),
        "data_wait_beside_sleep": statistics.median(rates.data_wait_beside_sleep),
        "backend": pipeline.backend,
        "reason": pipeline.reason,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "arch": config.arch,
        "batch_size": config.batch_size,
        "image_size": config.image_size,
        "queue_size": config.queue_size,
        "precision": str(dtype or torch.float32).removeprefix("torch."),
        "compile": config.compile,
        "stretches": asdict(rates),
    }


def table(result: dict[str, Any]) -> Table:
    """The rates as a table."""
    shown = Table(
        title=f"{result['arch']}, batch {result['batch_size']}, {result['image_size']} pixels, "
        f"{result['precision']}, {result['device']}"
    )
    shown.add_column("what")
    for name in ("images/s", "lowest", "highest"):
        shown.add_column(name, justify="right")
    for name in ("loader", "model", "end_to_end"):
        values = result["stretches"][name]
        shown.add_row(
            name.replace("_", " "), *(f"{v:,.0f}" for v in (statistics.median(values), min(values), max(values)))
        )
    return shown


def verdict(result: dict[str, Any]) -> str:
    """One sentence that names the bottleneck."""
    loader, model, efficiency = (result[k] for k in ("loader_imgs_per_sec", "model_imgs_per_sec", "efficiency"))
    slower, ratio = ("loader", model / loader) if loader < model else ("model", loader / model)
    reach = f"end to end reaches {efficiency:.0%} of it and waits for data for {result['data_wait']:.0%} of the time"
    line = f"The {slower} is the bottleneck, {ratio:.1f} times slower than the other; {reach}."
    if result["device"] == "cpu":
        line += (
            f" On a CPU both share {os.cpu_count()} cores: {result['of_shared_cores']:.0%} of what sharing allows;"
            f" beside a sleep as long as a step, {result['data_wait_beside_sleep']:.1%} of the time is spent waiting."
        )
    return line
