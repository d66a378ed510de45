"""What checkpoints cost the steps: written in the background, in a process, or before the next step.

    python benchmarks/checkpoints.py [--arch ARCH] [--rounds N] [--folder FOLDER] [--json OUT]

A round has a block of steps for each way, in another order in each round: without a checkpoint, and with one that
begins before the block. The blocks are longer than a write, so that all of its cost is within its block.

- none: no checkpoint;
- waiting: hash, check and write before the next step, as older versions did;
- thread: as a run does it;
- process: the same in a process of its own, from memory that both share.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as processes

from _command import script
from _environment import environment
from _results import show, write_json
from fastmoco.checkpoints import saving
from fastmoco.checkpoints.finite import first_not_finite
from fastmoco.checkpoints.saving import Saver
from fastmoco.flags import at_least
from fastmoco.recipes import moco_v2
from fastmoco.trainer.step import TrainStep
from pipelines import TwoViews

WAYS = ("none", "waiting", "thread", "process")
Save = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Args:
    """Measure the cost of checkpoints."""

    arch: str = "resnet50"
    """Encoder."""
    batch_size: int = 16
    """Images per step."""
    image_size: int = 64
    """Side of a view in pixels."""
    queue_size: int = 65_536
    """Keys in the queue."""
    steps: int = 12
    """Steps of a block; together they should take longer than a write."""
    rounds: int = 5
    """Blocks of each way."""
    every: float = 60.0
    """Seconds between checkpoints, for the share of the time in the result."""
    folder: Path | None = None
    """Folder on the disk to write to; default: a temporary one."""
    json: Path | None = None
    """File for the result and the environment."""


def run(args: Args) -> None:
    """Measure, print a line for each way, and write the rows."""
    at_least(1, args, "batch_size", "image_size", "queue_size", "steps", "rounds")
    with tempfile.TemporaryDirectory(prefix="fastmoco-", dir=args.folder) as folder:
        size, blocks = measure(args, Path(folder))
    plain = [block["seconds"] for block in blocks["none"]]
    rows = [show(_row(args, way, blocks[way], plain)) for way in WAYS]
    if args.json:
        given = {name: getattr(args, name) for name in ("arch", "batch_size", "image_size", "queue_size", "steps")}
        result = {"bytes": size, "seconds_between": args.every, **given, "rows": rows, "blocks": blocks}
        write_json(args.json, result | {"environment": environment()})


def measure(args: Args, folder: Path) -> tuple[int, dict[str, list[dict[str, float]]]]:
    """Size of a checkpoint, and for each way the blocks in order: seconds, and those for which steps were blocked."""
    config = replace(
        moco_v2(), arch=args.arch, batch_size=args.batch_size, image_size=args.image_size, queue_size=args.queue_size
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step = TrainStep(config, device, total_steps=10**6)
    views = torch.randn(2, args.batch_size, 3, args.image_size, args.image_size, device=device)
    query, key = (view.contiguous(memory_format=torch.channels_last) for view in views)
    batch = TwoViews(query, key, torch.arange(args.batch_size))
    numbers = iter(range(10**9))

    def block(save: Save) -> dict[str, float]:
        began = time.perf_counter()
        save({"progress": {"step": next(numbers)}, **step.state()})
        blocked = time.perf_counter() - began
        for _ in range(args.steps):
            loss = step(batch, next(numbers)).loss
        float(loss.detach())
        return {"seconds": time.perf_counter() - began, "blocked": blocked}

    def write(state: dict[str, Any]) -> Path:
        return save_checked(folder / "checkpoints", state)

    def waiting(state: dict[str, Any]) -> None:
        write(state)

    saver = Saver(write)

    def thread(state: dict[str, Any]) -> None:
        saver.result(wait=True)
        saver.start(state)

    with in_process(folder / "of_process") as (process, wait):
        ways: dict[str, Save] = {"none": lambda _: None, "waiting": waiting, "thread": thread, "process": process}
        for save in ways.values():  # untimed: buffers, and the optimiser's state
            block(save)
        blocks: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for number in range(args.rounds):
            for way in (*WAYS[number % 4 :], *WAYS[: number % 4]):
                blocks[way].append(block(ways[way]))
                saver.result(wait=True)
                wait()
    (path, *_) = (folder / "checkpoints").iterdir()
    return path.stat().st_size, blocks


def save_checked(folder: Path, state: dict[str, Any]) -> Path:
    """Check and write a state, as a run does."""
    assert first_not_finite(state) is None
    return saving.save(folder, state, 1)


@contextmanager
def in_process(folder: Path) -> Iterator[tuple[Save, Callable[[], None]]]:
    """Gives functions: one copies a state into shared memory and lets another process write it, one waits for that."""
    context = processes.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=_write_all, args=(theirs, folder), daemon=True)
    worker.start()
    shared: dict[str, Any] = {}
    written: list[bool] = []

    def copied(value: Any, path: str) -> Any:
        if isinstance(value, dict):
            return {key: copied(part, f"{path}.{key}") for key, part in value.items()}
        if isinstance(value, list):
            return [copied(part, f"{path}.{number}") for number, part in enumerate(value)]
        if not isinstance(value, torch.Tensor):
            return value
        if path not in shared:
            shared[path] = torch.empty_like(value.detach(), device="cpu").share_memory_()
        return shared[path].copy_(value.detach())

    def wait() -> None:
        if written:
            written.pop()
            ours.recv()

    def save(state: dict[str, Any]) -> None:
        wait()
        ours.send(copied(state, ""))
        written.append(True)

    try:
        yield save, wait
    finally:
        ours.send(None)
        worker.join()


def _write_all(states: Connection, folder: Path) -> None:
    torch.set_num_threads(1)
    while (state := states.recv()) is not None:
        save_checked(folder, state)
        states.send(True)


def _row(args: Args, way: str, blocks: list[dict[str, float]], plain: list[float]) -> dict[str, Any]:
    blocked = [block["blocked"] for block in blocks]
    # of one round, so that both had the same neighbours on the machine
    extra = [block["seconds"] - without for block, without in zip(blocks, plain, strict=True)]
    return {
        "way": way,
        "blocked_seconds": _spread(blocked),
        "blocked_percent": round(100 * statistics.median(blocked) / args.every, 2),
        "extra_seconds": _spread(extra),
        "extra_percent": round(100 * statistics.median(extra) / args.every, 2),
    }


def _spread(values: list[float]) -> list[float]:
    """Least, median and largest."""
    return [round(value, 3) for value in (min(values), statistics.median(values), max(values))]


if __name__ == "__main__":
    script(Args, run)
