"""Images per second of `fastmoco embed`, beside reading the images alone and the encoder alone.

    python benchmarks/embedding.py [--shards PATH] [--arch NAME] [--json OUT]

The three take turns, each with the same images and batches; after a turn that is dropped the median of each counts.
Efficiency is the rate of `fastmoco embed` over the smaller of the other two. Where the encoder runs on the CPU, reading
takes its time from the encoder: the best efficiency is then that of doing one after the other, which is given as well.
On two cores the defaults take about four minutes. Beside the rows in --json is their table (.md).
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from _command import script
from _environment import environment
from _features_tables import embedding as markdown
from _results import show, write_beside, write_json
from fastmoco.architectures import check_arch
from fastmoco.demo.made import make_images
from fastmoco.features.writing import Job, write_features
from fastmoco.flags import at_least
from fastmoco.probes.encoders import open_encoder
from fastmoco.probes.features import Extractor
from fastmoco.ranks.world import World
from fastmoco.views import resize_for
from pipelines import LabelledPipeline, PipelineOptions
from shards import PackOptions, ShardSet, pack
from shards.storage.store import open_store


@dataclass(frozen=True)
class Args:
    """Time the features of a set."""

    shards: Path | None = None
    """Shard set, read whole; default: 256 made images."""
    arch: str = "resnet50"
    """Encoder, with random weights."""
    image_size: int = 224
    """Side of the crops in pixels."""
    batch_size: int = 64
    """Images of a batch."""
    part_size: int = 128
    """Images of a part."""
    threads: int | None = None
    """Threads that read; default: one per core."""
    repeats: int = 5
    """Turns that count."""
    json: Path | None = None
    """File for the rows and the environment."""


def run(args: Args) -> None:
    """Measure, print the row, and write it."""
    at_least(1, args, "image_size", "batch_size", "part_size", "threads", "repeats")
    check_arch(args.arch)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="embedding-")))
        shards = args.shards or made(work)
        shard_set = stack.enter_context(ShardSet(shards))
        frozen, here = open_encoder("untrained", args.arch), World(0, 1, device)
        options = PipelineOptions(threads=args.threads)
        extractor = Extractor(
            frozen.encoder.to(device), frozen.digest, resize_for(args.image_size), args.image_size, here,
            args.batch_size, options=options,
        )  # fmt: skip
        rates = measured(args, shard_set, extractor, work)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    slower = min(medians["loader"], medians["encoder"])
    row: dict[str, Any] = {f"{name}_imgs_per_sec": round(value, 2) for name, value in medians.items()}
    row["efficiency"] = round(medians["embed"] / slower, 3)
    if device.type == "cpu":
        one_after_the_other = 1 / (1 / medians["loader"] + 1 / medians["encoder"])
        row["efficiency_of_one_after_the_other"] = round(one_after_the_other / slower, 3)
    row |= {"arch": args.arch, "image_size": args.image_size, "images": len(shard_set), "batch_size": args.batch_size}
    show(row)
    if args.json:
        result = {"environment": environment(), "row": row, "rates": rates}
        write_json(args.json, result)
        write_beside(args.json, markdown(result))


def made(work: Path) -> Path:
    """A set of 256 images as large as photographs."""
    make_images(work / "images", classes=8, per_class=32, size=(375, 500), seed=0)
    pack(PackOptions(work / "images", work / "set"), progress=False)
    return work / "set"


def measured(args: Args, shard_set: ShardSet, extractor: Extractor, work: Path) -> dict[str, list[float]]:
    """Images per second of each turn, by what was done."""
    device, count = extractor.here.device, len(shard_set)
    shape = (args.batch_size, 3, args.image_size, args.image_size)
    images = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
    extractor.encoder.eval()

    def loader() -> None:
        for _ in LabelledPipeline(
            shard_set, resize=extractor.resize, crop=extractor.crop, batch_size=args.batch_size, device=device,
            options=extractor.options, keep_bad=True,
        ):  # fmt: skip
            pass
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def encoder() -> None:
        for start in range(0, count, args.batch_size):
            extractor.encode_finite(images[: min(args.batch_size, count - start)])

    def embed() -> None:
        out = work / "features"
        write_features(Job(shard_set, extractor, open_store(out), "npy", "float32", args.part_size, extractor.here))
        shutil.rmtree(out)

    works: dict[str, Callable[[], None]] = {"loader": loader, "encoder": encoder, "embed": embed}
    rates: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(args.repeats + 1):
        for name in np.roll(list(works), turn).tolist():  # none is always first
            began = time.perf_counter()
            works[name]()
            if turn:  # the first one loads code and compiles
                rates[name].append(round(count / (time.perf_counter() - began), 2))
    return rates


if __name__ == "__main__":
    script(Args, run)
