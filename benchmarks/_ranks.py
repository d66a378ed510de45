"""Rates of `imgs_per_sec.py` under torchrun: of each rank, of all, and in relation to one process."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from _arguments import Args
from _command import BenchmarkError
from _environment import environment
from _processes import python
from _rates import Step, rates_on, settings, stretch, summary
from _results import write_json
from _sources import shard_set
from fastmoco.flags import flag
from fastmoco.ranks.world import World
from pipelines import TwoViewPipeline
from pipelines.choice import default_threads
from shards import ShardSet

_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")


def run(args: Args, here: World) -> None:
    """Measure on all ranks at once; rank 0 prints the table and writes the figures."""
    one_rank = settings(args, here.device)
    config = replace(one_rank, batch_size=one_rank.batch_size * here.size)
    console = Console(quiet=not here.is_main)
    with _same_set(args, config.batch_size, config.image_size, here) as (path, note):
        alone = one_process(args, path, here, console) if here.is_main else {}
        dist.barrier()
        with ShardSet(path) as shards:
            rates, found = rates_on(
                shards, config, here, partial(together, args=args, here=here), args.repeats, console
            )
    each: list[Any] = [None] * here.size
    dist.all_gather_object(each, summary(rates, one_rank, found))
    if not here.is_main:
        return
    result = scaled(each, alone) | {"shards": note, "environment": environment()}
    console.print(table(result))
    console.print(f"images: {note}; loader {found['backend']}: {found['reason']}")
    if args.json:
        write_json(args.json, result)


@contextmanager
def _same_set(args: Args, batch_size: int, image_size: int, here: World) -> Iterator[tuple[str, str]]:
    """Path and name of one set that all ranks read; rank 0 generates it if none is given."""
    if args.shards is None and int(os.environ.get("LOCAL_WORLD_SIZE", here.size)) < here.size:
        raise BenchmarkError("the ranks are on several nodes, which share no generated set; add --shards PATH")
    place: list[Any] = [None]
    if not here.is_main:
        dist.broadcast_object_list(place, 0)
        yield place[0]
        dist.barrier()
        return
    with shard_set(args.shards, batch_size, image_size) as (shards, note):
        place = [(str(shards.path), note)]
        dist.broadcast_object_list(place, 0)
        yield place[0]
        dist.barrier()  # a generated set is removed at the end


def one_process(args: Args, path: str, here: World, console: Console) -> dict[str, Any]:
    """The figures of one process alone, with the threads and the device of a rank."""
    variables = {"CUDA_VISIBLE_DEVICES": _own_device(here.device)} if here.device.type == "cuda" else {}
    # a rank's share of the cores, so that only the others' presence differs
    flags = ["--shards", path, "--threads", args.threads or default_threads(here.device), "--repeats", args.repeats]
    # the other flags as given here; those of --peers are at their defaults
    for name in [field.name for field in fields(args) if field.name not in ("shards", "threads", "repeats", "json")]:
        if (value := getattr(args, name)) != getattr(Args, name):
            flags += [flag(name)] if value is True else [flag(name), value]
    with tempfile.TemporaryDirectory() as folder, console.status("one process alone"):
        out = Path(folder) / "alone.json"
        script = Path(__file__).parent / "imgs_per_sec.py"
        python(script, *flags, "--json", out, variables=variables, without=_LAUNCHER)
        return json.loads(out.read_text(encoding="utf-8"))


def _own_device(device: torch.device) -> str:
    """The value of CUDA_VISIBLE_DEVICES that shows this device only."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    index = device.index or 0
    return visible.split(",")[index] if visible else str(index)


def together(pipeline: TwoViewPipeline, step: Step | None, args: Args, here: World) -> tuple[float, float]:
    """A stretch that all ranks begin together and for equally many steps, as collectives in the step need."""
    steps = args.steps
    if steps is None:
        dist.barrier()
        seconds = torch.tensor(stretch(pipeline, step, replace(args, steps=2))[0], device=here.device)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        steps = max(1, math.ceil(args.seconds / seconds.item()))
    dist.barrier()
    return stretch(pipeline, step, replace(args, steps=steps))


def scaled(each: list[dict[str, Any]], alone: dict[str, Any]) -> dict[str, Any]:
    """Rates of all ranks and their relation to as many processes alone, with the figures of each and of one alone."""
    result: dict[str, Any] = {"ranks": len(each)}
    for name in ("loader", "model", "end_to_end"):
        key = f"{name}_imgs_per_sec"
        result[key] = sum(rank[key] for rank in each)
        result[f"{name}_scaling"] = result[key] / (len(each) * alone[key])
    return result | {"each": each, "alone": alone}


def table(result: dict[str, Any]) -> Table:
    """The rates as a table."""
    one, ranks = result["alone"], result["ranks"]
    shown = Table(
        title=f"{ranks} ranks: {one['arch']}, batch {one['batch_size']} per rank, {one['image_size']} pixels, "
        f"{one['precision']}, {one['device']}"
    )
    shown.add_column("images/s of")
    for name in ("all", "lowest rank", "highest rank", "one alone", "scaling"):
        shown.add_column(name, justify="right")
    for name in ("loader", "model", "end_to_end"):
        key = f"{name}_imgs_per_sec"
        values = [rank[key] for rank in result["each"]]
        figures = (result[key], min(values), max(values), one[key])
        shown.add_row(
            name.replace("_", " "), *(f"{value:,.0f}" for value in figures), f"{result[f'{name}_scaling']:.0%}"
        )
    return shown
