"""Images of 16 bits that the torch backend loads in a second, beside JPEGs of the same pictures, and their parts.

    python benchmarks/deep.py --photos FOLDER [--images 512] [--threads 1] [--repeats 5] [--json OUT]

The pictures are photographs, grey: as JPEGs of quality 92, and with 12 bits in PNGs of 16, whose four lowest bits are
noise, as a camera's are. All sets are loaded in turn, with the views of MoCo v2, and the median of the repeats counts.
"""

from __future__ import annotations

import io
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from _command import BenchmarkError, script
from _results import show, write_json
from fastmoco.flags import at_least
from pipelines import PipelineOptions, ViewSpec, build, draw
from pipelines.augmentation import GREY_MEAN, GREY_STD
from pipelines.colour import Colours
from pipelines.decode import Memory
from pipelines.torch_cpu import decoded
from shards import PackOptions, ShardSet, pack
from shards.images import deep

_BATCH = 64
_ONE = replace(ViewSpec.moco_v2(224), mean=GREY_MEAN, std=GREY_STD)
_SPECS = {1: _ONE, 3: ViewSpec.moco_v2(224)}
_TIMED = 64  # images whose decoding and views are timed apart


@dataclass(frozen=True)
class Args:
    """Images of 16 bits that are loaded in a second, beside JPEGs of the same pictures."""

    photos: Path
    """Folder with photographs, JPEGs, also in its folders."""
    images: int = 512
    """Photographs to load."""
    threads: int = 1
    """Threads that load."""
    repeats: int = 5
    """Repeats of all rows."""
    json: Path | None = None
    """File for the rows and the environment."""


def run(args: Args) -> None:
    """Measure, print a line for each row, and write the rows."""
    at_least(1, args, "repeats", "threads")
    at_least(_BATCH, args, "images")
    paths = sorted(args.photos.rglob("*.jpg"))
    if len(paths) < args.images:
        raise BenchmarkError(f"{args.photos} has {len(paths)} JPEGs; give --images {len(paths)} or fewer")
    with tempfile.TemporaryDirectory() as folder:
        sets = _sets([paths[at] for at in np.linspace(0, len(paths) - 1, args.images).astype(int)], Path(folder))
        kinds = [(bits, channels) for channels in (1, 3) for bits in (8, 16)]
        found: dict[tuple[int, int], list[dict[str, float]]] = {kind: [] for kind in kinds}
        for _ in range(args.repeats):
            for (bits, channels), measured in found.items():
                with ShardSet(sets[bits]) as shards:
                    rate = _rate(shards, _SPECS[channels], args.threads)
                    measured.append({"imgs_per_sec": rate, **_parts(shards, _SPECS[channels])})
        rows = []
        for (bits, channels), measured in found.items():
            with ShardSet(sets[bits]) as shards:
                row = {"bits": bits, "channels": channels, "bytes": shards.manifest.bytes // len(shards)}
            rows.append(show(row | {name: round(median(each[name] for each in measured), 3) for name in measured[0]}))
    if args.json:
        from _environment import environment

        settings = {"images": args.images, "threads": args.threads, "repeats": args.repeats}
        write_json(args.json, {"environment": environment(), **settings, "rows": rows})


def _sets(paths: list[Path], folder: Path) -> dict[int, Path]:
    """The packed sets by their bits."""
    chance = np.random.default_rng(0)
    for number, path in enumerate(paths):
        with Image.open(path) as image:
            grey = image.convert("L")
        pixels = np.asarray(grey).astype(np.uint16) * 16 + chance.integers(0, 16, grey.size[::-1], dtype=np.uint16)
        buffer = io.BytesIO()
        grey.save(buffer, "JPEG", quality=92)
        for bits, data in ((8, buffer.getvalue()), (16, deep.png(pixels))):
            (folder / f"images-{bits}").mkdir(exist_ok=True)
            (folder / f"images-{bits}" / f"{number:06d}.jpg").write_bytes(data)  # the same name: in the same order
    for bits in (8, 16):
        options = PackOptions(folder / f"images-{bits}", folder / f"set-{bits}", keep_16_bit=bits == 16)
        pack(options, progress=False)
    return {bits: folder / f"set-{bits}" for bits in (8, 16)}


def _rate(shards: ShardSet, spec: ViewSpec, threads: int) -> float:
    """Images a second of a whole pipeline, after its first batch."""
    options = PipelineOptions(pipeline="torch", threads=threads, prefetch=1)
    with build(shards, spec, options, global_batch=_BATCH) as pipeline:
        batches = pipeline.epoch(0)
        next(batches)
        began = time.perf_counter()
        count = sum(len(batch.ids) for batch in batches)
        return count / (time.perf_counter() - began)


def _parts(shards: ShardSet, spec: ViewSpec) -> dict[str, float]:
    """Milliseconds an image, on one thread: reading, decoding, and both views with their colours."""
    ids = np.arange(_TIMED)
    sizes = shards.sizes(ids)
    views = [draw(spec, seed=0, epoch=0, ids=ids, sizes=sizes, view=view) for view in range(2)]
    colours = [Colours.of(view, spec, spec.image_size**2) for view in views]
    out, memory = np.empty((spec.image_size, spec.image_size, spec.channels), np.float32), Memory()
    clock = []
    for slot, size in enumerate(sizes.tolist()):
        times = [time.perf_counter()]
        data = shards.check(slot)
        times.append(time.perf_counter())
        make = decoded(data, size, 1, memory, spec.channels, shards.scaling)
        times.append(time.perf_counter())
        for view, colour in zip(views, colours, strict=True):
            make(view, slot, out, colours=colour)
        clock.append([*times, time.perf_counter()])
    seconds = np.diff(clock, axis=1).mean(axis=0)
    return dict(zip(("read_ms", "decode_ms", "views_ms"), (1e3 * seconds).tolist(), strict=True))


if __name__ == "__main__":
    torch.set_num_threads(1)
    script(Args, run)
