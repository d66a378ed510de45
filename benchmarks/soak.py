"""Memory of a pipeline over many batches: small images with a few very large ones among them.

    python benchmarks/soak.py [--batches N] [--pipeline torch|dali] [--json OUT]

The resident memory of the process is read every so many batches. The second half of the readings is cut into ten parts:
the slope is their mean growth, and its error that mean's standard error. Memory grows in rare steps, so a line's
residuals, which hang together, would make the error look smaller than it is. Linux alone.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from PIL import Image

from _environment import environment
from fastmoco.demo.made import make_images
from pipelines import PipelineOptions, ViewSpec, build
from shards import PackOptions, ShardSet, pack

PAGE = os.sysconf("SC_PAGE_SIZE")
PARTS = 10


@dataclass(frozen=True)
class Args:
    """Watch a pipeline's memory."""

    batches: int = 20_000
    """Batches to make."""
    batch_size: int = 8
    """Images a batch."""
    image_size: int = 32
    """Side of a view, in pixels."""
    pipeline: Literal["torch", "dali"] = "torch"
    """Data backend."""
    large: int = 4
    """Images of 4,000 x 4,000 pixels among the set's 2,004."""
    readings: int = 200
    """How often memory is read."""
    json: Path | None = None
    """File to write the readings to."""


def main() -> None:
    """Entry of the script."""
    args = tyro.cli(Args, prog="soak.py")
    if min(args.batches, args.readings, args.batch_size) < 1 or not 4 <= args.readings <= args.batches:
        raise SystemExit("soak: numbers must be at least 1, with four readings or more and as many batches")
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        _make_set(Path(folder), args.large)
        with ShardSet(Path(folder) / "set") as shards:
            result = watch(shards, args)
    print(f"{args.batches:,} batches, {result['minutes']:.1f} minutes: ", end="")
    print(f"{result['first_mb']:.0f} MB after a tenth, {result['last_mb']:.0f} MB at the end; ", end="")
    print(f"slope {result['kb_per_1000_batches']:+.1f} ± {result['error']:.1f} kB for 1,000 batches")
    if args.json:
        args.json.write_text(json.dumps(result | {"environment": environment()}, indent=1) + "\n", encoding="utf-8")


def _make_set(folder: Path, large: int) -> None:
    make_images(folder / "images", classes=4, per_class=500, size=(48, 64), seed=0)
    noise = np.random.default_rng(0)
    for number in range(large):
        tiles = noise.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        path = folder / "images" / "large" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(tiles).resize((4000, 4000), Image.Resampling.BICUBIC).save(path, quality=90)
    pack(PackOptions(folder / "images", folder / "set"), progress=False)


def watch(shards: ShardSet, args: Args) -> dict[str, Any]:
    """Resident memory, in MB, every so many batches, and its slope."""
    every, readings, started = args.batches // args.readings, [], time.perf_counter()
    spec = ViewSpec.moco_v2(args.image_size)
    with build(shards, spec, PipelineOptions(pipeline=args.pipeline), global_batch=args.batch_size) as pipeline:
        for number, batch in enumerate(_endless(pipeline), start=1):
            del batch
            if number % every == 0:
                readings.append(_resident() / 1e6)
            if number == args.batches:
                break
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


def _endless(pipeline: Any):
    epoch = 0
    while True:
        yield from pipeline.epoch(epoch)
        epoch += 1


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


def growth(readings: np.ndarray, step: float) -> tuple[float, float]:
    """Mean growth over `PARTS` parts of the readings and its standard error, both for ``1 / step`` readings."""
    ends = readings[np.linspace(0, len(readings) - 1, min(PARTS, len(readings) - 1) + 1).round().astype(int)]
    each = np.diff(ends) / (step * (len(readings) - 1) / (len(ends) - 1))
    return float(each.mean()), float(each.std(ddof=min(1, len(each) - 1)) / len(each) ** 0.5)


if __name__ == "__main__":
    main()
