"""Rates of `imgs_per_sec.py`: the loader alone, the model alone, and both together."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from _arguments import Args
from _environment import environment
from _results import write_json
from _sources import endless, shard_set
from fastmoco.config import Config
from fastmoco.flags import flag
from fastmoco.ranks.world import World
from fastmoco.recipes import moco_v2
from fastmoco.trainer.step import TrainStep
from pipelines import TwoViewPipeline, TwoViews, build
from pipelines.options import BackendName
from shards import ShardSet

Step = Callable[[TwoViews, int], object]
Stretch = Callable[[TwoViewPipeline, Step | None], tuple[float, float]]
"""Runs a pipeline, and a step on each batch if given; returns seconds per step, and those spent waiting for data."""
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
    """Measure in one process, print the table, and write the figures."""
    config = settings(args, device)
    console = Console()
    with shard_set(args.shards, config.batch_size, config.image_size) as (shards, note):
        rates, found = rates_on(shards, config, World(0, 1, device), partial(stretch, args=args), args.repeats, console)
        result = summary(rates, config, found) | {"shards": note, "samples": len(shards)}
    result["environment"] = environment()
    console.print(table(result))
    # not the table's caption, which would be wrapped at the table's width
    console.print(f"images: {result['shards']}; loader {result['backend']}: {result['reason']}")
    console.print(verdict(result))
    if args.json:
        write_json(args.json, result)


def rates_on(
    shards: ShardSet, config: Config, here: World, run: Stretch, repeats: int, console: Console
) -> tuple[Rates, dict[str, Any]]:
    """Rates of this rank, and what they were measured with.

    Args:
        shards: the set.
        config: settings; its batch is of all ranks.
        here: this rank.
        run: a stretch of steps.
        repeats: measurements of each rate.
        console: shows the progress.
    """
    step = TrainStep(config, here.device, 1_000_000)
    dtype = step.dtype or torch.float32

    def make(backend: BackendName) -> TwoViewPipeline:
        return build(
            shards, config.view_pair, replace(config, pipeline=backend), global_batch=config.batch_size,
            rank=here.rank, world_size=here.size, device=here.device, dtype=dtype,
        )  # fmt: skip

    with make(config.pipeline) as pipeline, make("constant") as constant:
        rates = measure(step, pipeline, constant, config.batch_size // here.size, run, repeats, console)
        device = torch.cuda.get_device_name(here.device) if here.device.type == "cuda" else "cpu"
        return rates, {
            "backend": pipeline.backend, "reason": pipeline.reason, "device": device,
            "precision": str(dtype).removeprefix("torch."),
        }  # fmt: skip


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
        decoder_load=args.decoder_load,
        precision=args.precision,
        compile=args.compile,
    )


def measure(
    step: TrainStep,
    pipeline: TwoViewPipeline,
    constant: TwoViewPipeline,
    batch_size: int,
    run: Stretch,
    repeats: int,
    console: Console,
) -> Rates:
    """Measure all rates in turn, `repeats` times; `batch_size` is this rank's."""
    rates = Rates([], [], [], [], [])
    for turn in range(repeats):
        with console.status(f"loader, model, end to end: {turn + 1} of {repeats}"):
            rates.loader.append(batch_size / run(pipeline, None)[0])
            rates.model.append(batch_size / run(constant, step)[0])
            seconds, waited = run(pipeline, step)
            rates.end_to_end.append(batch_size / seconds)
            rates.data_wait.append(waited / seconds)
            pause = batch_size / rates.model[-1]
            seconds, waited = run(pipeline, lambda *_, pause=pause: time.sleep(pause))
            rates.data_wait_beside_sleep.append(waited / seconds)
    return rates


def stretch(pipeline: TwoViewPipeline, step: Step | None, args: Args) -> tuple[float, float]:
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


def summary(rates: Rates, config: Config, found: dict[str, Any]) -> dict[str, Any]:
    """The medians, with the settings and what was `found` while measuring, in plain values."""
    loader, model, both = (statistics.median(r) for r in (rates.loader, rates.model, rates.end_to_end))
    return {
        "loader_imgs_per_sec": loader,
        "model_imgs_per_sec": model,
        "end_to_end_imgs_per_sec": both,
        "efficiency": both / min(loader, model),
        "of_shared_cores": both * (1 / loader + 1 / model),
        "data_wait": statistics.median(rates.data_wait),
        "data_wait_beside_sleep": statistics.median(rates.data_wait_beside_sleep),
        **found,
        "arch": config.arch,
        "batch_size": config.batch_size,
        "image_size": config.image_size,
        "queue_size": config.queue_size,
        "compile": config.compile,
        "differs_from_training": unlike_training(config),
        "stretches": asdict(rates),
    }


def unlike_training(config: Config) -> dict[str, list[Any]]:
    """What `fastmoco train` would use instead without flags, by name: what is measured, and what it would be."""
    names = ("arch", "batch_size", "image_size")
    return {name: pair for name in names if (pair := [getattr(config, name), getattr(moco_v2(), name)])[0] != pair[1]}


def table(result: dict[str, Any]) -> Table:
    """The rates as a table."""
    shown = Table(
        title=f"{result['arch']}, batch {result['batch_size']}, {result['image_size']} pixels, "
        f"{result['precision']}, {result['device']}{_remark(result['differs_from_training'])}"
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


def _remark(differing: dict[str, list[Any]]) -> str:
    if not differing:
        return ""
    names = [f"{flag(name)} {theirs}" for name, (_, theirs) in differing.items()]
    return f"\nnot what fastmoco train uses by default: for that, add {' '.join(names)}"


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
