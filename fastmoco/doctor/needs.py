"""What a training will take of this machine: memory, disk and time."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics

from fastmoco.checkpoints import checkpoint
from fastmoco.config import Config
from fastmoco.doctor.findings import Finding
from fastmoco.doctor.gpus import visible_gpus
from fastmoco.doctor.step_memory import StepMemory
from fastmoco.limits import memory_left
from fastmoco.report.reading import NoRun, read_run
from fastmoco.runs.folder import RUNS
from fastmoco.trainer.schedule import pixels
from shards.words import counted, duration, human_bytes


def memory(needed: StepMemory, config: Config, ranks: int) -> Finding:
    """What a rank's step takes, against the memory of a GPU, or its part of what is left here."""
    of_parts = {
        "weights": needed.weights, "gradients": needed.gradients, "optimiser": needed.momentum,
        "dictionary": needed.dictionary, "views": needed.views, "activations": needed.activations,
    }  # fmt: skip
    images = config.batch_size // ranks
    listed = ", ".join(f"{name} {human_bytes(size)}" for name, size in of_parts.items())
    if config.accumulate > 1:
        listed += f" of one of {config.accumulate} micro-batches"
    parts = f"{counted(images, 'image')} take about {human_bytes(needed.total)} ({listed}"
    parts += "; libraries, workspaces and fragmentation come on top)"
    gpus = visible_gpus()
    if gpus:
        room, where = min(gpu.memory for gpu in gpus), "of a GPU"
    else:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
        room, where = memory_left()[1] // here, f"left for each of {here} ranks" if here > 1 else "left"
    text = f"{parts}; {human_bytes(room)} {where}"
    if needed.total <= 0.8 * room:
        return Finding("memory", text)
    fitting = _fitting(needed, config, images, ranks, room)
    accumulate = f"--accumulate {fitting}, " if fitting else ""
    if needed.total > room:
        return Finding("memory", text, "stop", f"give {accumulate}a smaller --batch-size, or more ranks")
    other = f"{accumulate}or " if accumulate else ""
    return Finding("memory", text, "warn", f"give {other}a smaller --batch-size, if it does not fit")


def _fitting(needed: StepMemory, config: Config, images: int, ranks: int, room: int) -> int | None:
    """The least number of micro-batches with which a step fits; None if there is none."""
    if config.mechanism == "end-to-end":
        return None
    fixed, whole = needed.total - needed.activations, needed.activations * config.accumulate
    if config.symmetric and config.accumulate == 1:
        whole //= 2  # micro-batches have the two views one after the other
    smallest = 1 if config.batch_norm == "sync" and ranks > 1 else 2 * config.bn_splits
    for parts in range(config.accumulate + 1, images // smallest + 1):
        if images % (parts * config.bn_splits) == 0 and fixed + whole / parts <= 0.8 * room:
            return parts
    return None


def disk(config: Config, size: int, epochs: int) -> Finding:
    """Free space against the checkpoints that will be there at once, with the one that is being written.

    Args:
        config: the settings.
        size: bytes of a checkpoint.
        epochs: length of the run, in whole epochs.
    """
    folder = config.out or RUNS
    while not folder.exists():
        folder = folder.absolute().parent
    have = sum(path.stat().st_size for path in checkpoint.found(config.out / "checkpoints")) if config.out else 0
    number = config.keep_checkpoints
    if config.keep_every:
        number += epochs // config.keep_every
    kept = number * size
    if config.checkpoint_space is not None:
        kept = min(kept, int(config.checkpoint_space * 1e9))
    needed, free = max(0, kept - have) + size, shutil.disk_usage(folder).free
    text = (
        f"{human_bytes(free)} free at {folder}; a checkpoint takes {human_bytes(size)}, and those to "
        f"come {human_bytes(needed)} (up to {number:,} are kept, and one is being written)"
    )
    if free < needed:
        return Finding("disk", text, "stop", "make room, keep fewer, or bound them by --checkpoint-space")
    return Finding("disk", text)


def time(config: Config, total_steps: int) -> Finding:
    """How long the run takes, by the rate that the run folder has recorded."""
    record = None
    with contextlib.suppress(NoRun):
        record = read_run(config.out) if config.out is not None else None
    rates = {} if record is None else record.rates()
    # where steps differ, in work and not in images: those that were measured may have had smaller views
    work = pixels(config, total_steps) or float
    pace = statistics.median([rate * (work(step) - work(step - 1)) for step, rate in rates.items()] or [0.0])
    if record is None or not pace:
        remedy = "run some steps with this --out and --steps 50, and repeat the dry run"
        return Finding("time", "not known: no rate has been measured in --out", "note", remedy)
    done = min(record.step, total_steps)
    left = (work(total_steps) - work(done)) * config.batch_size / pace
    return Finding(
        "time",
        f"about {duration(left)} for {total_steps - done:,} steps at {record.rate():,.0f} images/s, "
        f"as {config.out} recorded",
    )
