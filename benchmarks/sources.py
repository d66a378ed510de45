"""Images per second of packing the same images from each kind of source, beside those from a folder.

    python benchmarks/sources.py [--photos FOLDER] [--images N] [--json OUT]

The kinds take turns; after a turn that is dropped the median of each counts, and ratios are of medians. A rate covers
the whole command: reading what is in the source, starting processes, packing, and syncing to the disk. The files have
just been written, so they come from memory.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from _command import BenchmarkError, script
from _environment import environment
from _packing.kinds import KINDS, images_in
from _packing.table import sources as table
from _results import show, write_beside, write_json
from fastmoco.demo.made import make_images
from fastmoco.flags import at_least
from shards import PackOptions, pack


@dataclass(frozen=True)
class Args:
    """Compare kinds of sources."""

    photos: Path | None = None
    """Folder of JPEG photographs, searched to any depth; default: made images as large as photographs."""
    images: int = 4000
    """Images to pack; there are copies if there are fewer photographs."""
    kinds: tuple[str, ...] = tuple(KINDS)
    """Kinds of sources, beside the folder."""
    workers: int = len(os.sched_getaffinity(0))
    """Number of processes."""
    repeats: int = 5
    """Turns that count."""
    work: Path | None = None
    """Folder for temporary files; default: the system's."""
    json: Path | None = None
    """File for the rows and the environment; the table (.md) is written beside it."""


def run(args: Args) -> None:
    """Measure, print a row for each kind, and write them."""
    at_least(1, args, "images", "workers", "repeats")
    unknown = [name for name in args.kinds if name not in KINDS]
    if unknown:
        raise BenchmarkError(f"--kinds {unknown[0]!r} is unknown; known: {', '.join(KINDS)}")
    with tempfile.TemporaryDirectory(prefix="sources-", dir=args.work) as temporary:
        work = Path(temporary)
        sources = {"folder": written(args, work / "images")}
        for name in args.kinds:
            file, write = KINDS[name]
            sources[name] = work / file
            write(images_in(sources["folder"]), sources[name])
        rates = measured(args, sources, work / "out")
    medians = {name: statistics.median(values) for name, values in rates.items()}
    rows = []
    for name, rate in medians.items():
        row = {"source": name, "imgs_per_sec": round(rate, 1), "of_folder": round(rate / medians["folder"], 3)}
        rows.append(row | {"images": args.images, "workers": args.workers})
        show(rows[-1])
    if args.json:
        of = "photographs" if args.photos else "made images"
        result = {"environment": environment(), "of": of, "rows": rows, "rates": rates}
        write_json(args.json, result)
        write_beside(args.json, table(result))


def written(args: Args, folder: Path) -> Path:
    """A folder with the images as files, in ten classes."""
    if args.photos is None:
        made = make_images(folder.with_name("made"), classes=8, per_class=32, size=(375, 500), seed=0)
        photos = sorted(made.rglob("*.jpg"))
    else:
        photos = sorted(args.photos.rglob("*.jp*g"))
    if not photos:
        raise BenchmarkError(f"no JPEG photographs in --photos {args.photos}; give a folder with .jpg or .jpeg files")
    for number in range(args.images):
        path = folder / f"class {number % 10}" / f"{number:08d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photos[number % len(photos)], path)
    return folder


def measured(args: Args, sources: dict[str, Path], out: Path) -> dict[str, list[float]]:
    """Images per second of each turn, by the kind of source."""
    # a process packs a whole shard: with eight shards each, none idles at the end for long, as in a large set
    size = max(1, -(-args.images // (8 * args.workers)))
    rates: dict[str, list[float]] = {name: [] for name in sources}
    for turn in range(args.repeats + 1):
        for name, src in sources.items():
            print(f"{turn} of {args.repeats}: {name}", file=sys.stderr)
            os.sync()  # so that the previous turn's writes are not part of this one
            started = time.perf_counter()
            manifest = pack(PackOptions(src, out, workers=args.workers, shard_size=size), progress=False)
            seconds = time.perf_counter() - started
            if manifest.samples != args.images:
                raise BenchmarkError(f"{manifest.samples:,} of {args.images:,} images were packed from {name}")
            shutil.rmtree(out)
            if turn:
                rates[name].append(args.images / seconds)
    return rates


if __name__ == "__main__":
    script(Args, run)
