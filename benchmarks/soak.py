"""Memory of a pipeline over many batches of small images with a few very large ones among them.

    python benchmarks/soak.py [--batches N] [--pipeline torch|dali] [--json OUT]

The resident memory of the process is read at regular intervals. The second half of the readings is divided into ten
parts; the slope is their mean growth, and the error is the standard error of that mean. A line fit would understate the
error: memory grows in rare steps, so the residuals are correlated. Linux only.

Ends with exit code 1 if the slope exceeds LIMIT by more than three times its error. Runs whose second half begins
before SETTLED batches are not judged.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image

from _command import BenchmarkError, script
from _environment import environment
from _memory import memory
from _results import write_json
from _sources import endless
from fastmoco.demo.made import make_images
from fastmoco.flags import at_least
from pipelines import PipelineOptions, TwoViewPipeline, ViewSpec, build
from shards import PackOptions, ShardSet, pack

T = TypeVar("T")
PARTS = 10
# In kB per 1,000 batches. Over the longest recipe on ImageNet (200 epochs of 256 images per step: 1,000,800 batches) it
# adds up to 50 MB, which no machine would notice. The committed runs have slopes of 0.4 and 2.9.
LIMIT = 50.0
# Batches until the buffers of all threads have grown to the largest images. In the committed runs memory rises by about
# 3 MB until then and is flat afterwards.
SETTLED = 10_000


@dataclass(frozen=True)
class Args:
    """Measure the growth of a pipeline's memory."""

    batches: int = 20_000
    """Batches to load."""
    batch_size: int = 8
    """Images per batch."""
    image_size: int = 32
    """Side of a view in pixels."""
    pipeline: Literal["torch", "dali"] = "torch"
    """Data backend."""
    large: int = 4
    """Images of 4,000 x 4,000 pixels, added to 2,000 small ones."""
    readings: int = 200
    """Number of memory readings."""
    json: Path | None = None
    """File for the readings and the environment."""


def run(args: Args) -> int:
    """Generate the set, load batches, print the growth of memory, and write the readings; returns the exit code."""
    at_least(1, args, "batch_size", "image_size")
    at_least(0, args, "large")
    at_least(4, args, "readings")  # growth needs two readings in the second half
    if args.batches < args.readings:
        raise BenchmarkError(f"--batches {args.batches} is less than --readings {args.readings}; use at least as many")
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        make_uneven_set(Path(folder), per_class=500, size=(48, 64), large=args.large, large_size=(4000, 4000))
        with ShardSet(Path(folder) / "set") as shards:
            result = watch(shards, args)
    print(
        f"{args.batches:,} batches, {result['minutes']:.1f} minutes: {result['first_mb']:.0f} MB after a tenth, "
        f"{result['last_mb']:.0f} MB at the end; slope {result['kb_per_1000_batches']:+.1f} ± {result['error']:.1f} kB "
        "per 1,000 batches"
    )
    if args.json:
        write_json(args.json, result | {"environment": environment()})
    line, code = verdict(result["kb_per_1000_batches"], result["error"], args.batches)
    print(line)
    return code


def make_uneven_set(
    folder: Path, *, per_class: int, size: tuple[int, int], large: int, large_size: tuple[int, int]
) -> Path:
    """A set in `folder`/set of few very large images among small ones.

    Each buffer grows when it first meets a large one, which must end.

    Args:
        folder: folder to write to.
        per_class: small images in each of four classes.
        size: their height and width in pixels.
        large: number of large images.
        large_size: their height and width in pixels.
    """
    make_images(folder / "images", classes=4, per_class=per_class, size=size, seed=0)
    height, width = large_size
    noise = np.random.default_rng(0)
    for number in range(large):
        tiles = noise.integers(0, 256, (height // 100, width // 100, 3), dtype=np.uint8)
        path = folder / "images" / "large" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(tiles).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
    pack(PackOptions(folder / "images", folder / "set"), progress=False)
    return folder / "set"


def watch(shards: ShardSet, args: Args) -> dict[str, Any]:
    """Resident memory in MB at regular intervals, and its slope."""
    every, started = args.batches // args.readings, time.perf_counter()
    spec = ViewSpec.moco_v2(args.image_size)
    with build(shards, spec, PipelineOptions(pipeline=args.pipeline), global_batch=args.batch_size) as pipeline:
        readings = read_every(pipeline, args.batches, every, lambda: memory("VmRSS") / 1e6)
    slope, error = growth(np.array(readings[len(readings) // 2 :]) * 1000, every / 1000)
    return {
        "pipeline": args.pipeline,
        "batches": args.batches,
        "batch_size": args.batch_size,
        "minutes": (time.perf_counter() - started) / 60,
        "first_mb": readings[len(readings) // 10],
        "last_mb": readings[-1],
        "kb_per_1000_batches": slope,
        "error": error,
        "readings_mb": [round(value, 2) for value in readings],
    }


def read_every(pipeline: TwoViewPipeline, batches: int, every: int, read: Callable[[], T]) -> list[T]:
    """What `read` returns after each `every` of a number of batches."""
    found = []
    for number, batch in enumerate(endless(pipeline), start=1):
        del batch  # or this frame would hold it while the memory is read
        if number % every == 0:
            found.append(read())
        if number == batches:
            return found
    raise AssertionError("the batches have no end")


def growth(readings: np.ndarray, step: float) -> tuple[float, float]:
    """Mean growth over `PARTS` parts of the readings, and its standard error, both per `1 / step` readings."""
    ends = readings[np.linspace(0, len(readings) - 1, min(PARTS, len(readings) - 1) + 1).round().astype(int)]
    each = np.diff(ends) / (step * (len(readings) - 1) / (len(ends) - 1))
    return float(each.mean()), float(each.std(ddof=min(1, len(each) - 1)) / len(each) ** 0.5)


def verdict(slope: float, error: float, batches: int) -> tuple[str, int]:
    """A line that says whether memory grows, and the exit code: 1 if it does.

    Args:
        slope: kB per 1,000 batches, from `growth`.
        error: its standard error.
        batches: of the whole run.
    """
    if batches < 2 * SETTLED:
        return f"not judged: buffers may still be growing; use --batches {2 * SETTLED} or more", 0
    # three errors, because one step in ten parts has a slope of one error, and two steps of one and a half
    least = slope - 3 * error
    if least > LIMIT:
        return f"memory grows: slope − 3 × error is {least:+.1f} kB per 1,000 batches; the limit is {LIMIT:g}", 1
    return f"memory does not grow: slope − 3 × error is {least:+.1f} kB per 1,000 batches; the limit is {LIMIT:g}", 0


if __name__ == "__main__":
    script(Args, run)
