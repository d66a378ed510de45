"""Images per second of the loader alone, of the model alone, and of both together.

    python benchmarks/imgs_per_sec.py [--shards PATH] [--arch NAME] [--batch-size N] [--json OUT]
    python benchmarks/imgs_per_sec.py --peers [--shards PATH] [--batch-size N] [--only NAME ...] [--json OUT]

The model alone trains on one batch that never changes, so the smaller of the two rates is the most that both
together can reach; on a CPU they share its cores, and 1 / (1/loader + 1/model) is. The loader runs once more beside a
sleep as long as the model's step: what is still waited for then is latency, not want of cores. All are measured in
turn, several times; the median counts. An image counts once, however many views are made of it. With --peers, the
loader on the CPU is measured against other people's instead.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console

from _arguments import Args, BenchmarkError, check
from _environment import environment
from _peers.compare import Settings, compare
from _peers.show import bar_chart, markdown
from _sources import shard_set
from _table import table, verdict
from fastmoco.config import Config, ConfigError
from fastmoco.distributed import world
from fastmoco.recipes import moco_v2
from fastmoco.trainer.loop import view_spec
from fastmoco.trainer.step import TrainStep
from pipelines import PipelineError, TwoViewPipeline, TwoViews, build
from pipelines._threads import cores_of_rank
from shards import PackError, SampleError, ShardSet, ShardSetError

WARM_UP = 2  # steps before each timed stretch


@dataclass(frozen=True)
class Rates:
    """Images per second of each stretch, and the share of the time spent waiting for data."""

    loader: list[float]
    model: list[float]
    end_to_end: list[float]
    data_wait: list[float]
    data_wait_beside_sleep: list[float]


def main() -> None:
    """Entry of the script."""
    args = tyro.cli(Args, prog="imgs_per_sec.py")
    try:
        check(args)
        if args.peers:
            run_peers(args)
            return
        with world() as here:
            if here.size > 1:
                raise BenchmarkError("this measures one process; start it with python, not with torchrun")
            run(args, here.device)
    except (BenchmarkError, ConfigError, PackError, PipelineError, SampleError, ShardSetError) as error:
        print(f"imgs_per_sec: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def run(args: Args, device: torch.device) -> dict[str, Any]:
    """Measure, print the table, write the figures; returns them."""
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
    console.print(verdict(result))
    if args.json:
        _write(args.json, result)
    return result


def run_peers(args: Args) -> dict[str, Any]:
    """Measure the loader against others, print the table, write figures, table and chart; returns the figures."""
    console = Console()
    asked = Settings(
        args.batch_size or 64, args.image_size or 224, args.threads or cores_of_rank(), args.images, args.seconds,
        args.repeats, args.only,
    )  # fmt: skip
    with shard_set(args.shards, asked.batch_size, asked.image_size) as (shards, note):
        result = compare(shards, asked, console) | {"shards": note}
    print(markdown(result), end="")
    if args.json:
        _write(args.json, result)
        args.json.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
        args.json.with_suffix(".svg").write_text(bar_chart(result), encoding="utf-8")
    return result


def _write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def settings(args: Args, device: torch.device) -> Config:
    """The recipe moco-v2 at the sizes asked for, or at those that suit the device."""
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
    """Time the three in turn, `args.repeats` times."""
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
    """Run through batches for the time asked for; seconds a step, and of these waiting for data."""
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


def endless(pipeline: TwoViewPipeline):
    """Batches of epoch after epoch."""
    epoch = 0
    while True:
        yield from pipeline.epoch(epoch)
        epoch += 1


def _settle() -> None:
    """Wait until the device has done all that it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summary(
    rates: Rates, config: Config, pipeline: TwoViewPipeline, device: torch.device, dtype: torch.dtype | None
) -> dict[str, Any]:
    """The medians and what they were measured with, in plain values."""
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


if __name__ == "__main__":
    main()
