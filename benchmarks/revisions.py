"""Images per second of resized packing and of the loader before a change and after it, on the processor at hand.

    python benchmarks/revisions.py --photos FOLDER --against REVISION [--json OUT]

The code of the git revision is taken out into a temporary folder. It and the present code then take turns on the same
photographs, each time in a new process, together with a pool of Pillow processes and with decoding alone. A rate of
packing covers the start of its processes and the sync to the disk; the loader's begins when it has warmed up.
"""

from __future__ import annotations

import io
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from _command import BenchmarkError, script
from _processes import FOLDER, in_process
from _results import write_beside, write_json
from fastmoco.flags import at_least

RATIOS = {
    "packing: after / before": ("pack --resize, after", "pack --resize, before"),
    "packing: before / Pillow": ("pack --resize, before", "Pillow pool"),
    "packing: after / Pillow": ("pack --resize, after", "Pillow pool"),
    "loader: after / before": ("loader, after", "loader, before"),
    "loader: before / decoding alone": ("loader, before", "decoding alone"),
    "loader: after / decoding alone": ("loader, after", "decoding alone"),
}


@dataclass(frozen=True)
class Args:
    """Compare resized packing and the loader with those of an earlier revision."""

    photos: Path
    """Folder of JPEG photographs, searched to any depth."""
    against: str
    """Git revision of this checkout to compare with."""
    images: int = 4000
    """Images to pack; photographs are linked repeatedly if there are fewer."""
    short_side: int = 256
    """Short side of resized images."""
    image_size: int = 224
    """Side of a view in pixels."""
    workers: int = len(os.sched_getaffinity(0))
    """Number of processes or threads."""
    seconds: float = 8.0
    """Duration of one measurement of the loader."""
    repeats: int = 5
    """Turns."""
    json: Path | None = None
    """File for the rates and the environment; the table (.md) is written beside it."""


def run(args: Args) -> None:
    """Measure, print the table, and write rates and table."""
    at_least(1, args, "images", "short_side", "image_size", "workers", "repeats")
    photos = sorted(args.photos.rglob("*.jp*g"))
    if not photos:
        raise BenchmarkError(f"no JPEG photographs in --photos {args.photos}; give a folder with .jpg or .jpeg files")
    with tempfile.TemporaryDirectory(prefix="revisions-") as folder:
        before = taken_out(args.against, Path(folder) / "before")
        rates = measure(args, photos, before, Path(folder))
    from _environment import environment  # imports torch

    median = {name: statistics.median(values) for name, values in rates.items()}
    result = {
        "against": _git("rev-parse", "--short=12", args.against).decode().strip(), "imgs_per_sec": median,
        "ratios": {name: median[a] / median[b] for name, (a, b) in RATIOS.items()}, "runs": rates,
        "images": args.images, "workers": args.workers, "short_side": args.short_side, "image_size": args.image_size,
        "environment": environment(),
    }  # fmt: skip
    text = markdown(result)
    print(text, end="")
    if args.json:
        write_json(args.json, result)
        write_beside(args.json, text)


def taken_out(revision: str, folder: Path) -> Path:
    """The files of a revision in a folder; raises BenchmarkError if git has none of this name."""
    with tarfile.open(fileobj=io.BytesIO(_git("archive", "--format=tar", revision))) as tar:
        tar.extractall(folder)
    return folder


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=FOLDER.parent, capture_output=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"git {' '.join(arguments)}: {done.stderr.decode().strip().splitlines()[0]}")
    return done.stdout


def measure(args: Args, photos: list[Path], before: Path, folder: Path) -> dict[str, list[float]]:
    """Images per second of all contestants, in turn."""
    from _packing.photos import linked
    from shards import PackOptions, pack

    linked(photos, args.images, folder / "photos")
    pack(PackOptions(args.photos, str(folder / "shards")), progress=False)
    images: dict[str, Any] = {"source": str(folder / "photos"), "out": str(folder / "out"), "workers": args.workers}
    images["short_side"] = args.short_side
    batches: dict[str, Any] = {"folder": str(folder), "batch_size": 64, "image_size": args.image_size, "device": "cpu"}
    batches |= {"workers": args.workers, "seconds": args.seconds}
    after = FOLDER.parent
    runs: dict[str, Callable[[], float]] = {
        "pack --resize, before": partial(_rate, before, "revisions", "packed", images),
        "pack --resize, after": partial(_rate, after, "revisions", "packed", images),
        "Pillow pool": partial(_rate, after, "revisions", "by_pillow", images),
        "loader, before": partial(_rate, before, "_peers.run", "timed", {"contestant": "torch", **batches}),
        "loader, after": partial(_rate, after, "_peers.run", "timed", {"contestant": "torch", **batches}),
        "decoding alone": partial(_rate, after, "_peers.run", "timed", {"contestant": "decode-only", **batches}),
    }
    for tree in (before, after):
        if _rate(tree, "revisions", "place", {}) != str(tree.resolve()):
            raise BenchmarkError(f"the packages of {tree} are not those that Python imports there")
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(args.repeats + 1):
        for name, once in runs.items():
            print(f"{turn} of {args.repeats}: {name}", file=sys.stderr)
            rate = once()
            if turn:  # in the first turn Numba compiles
                rates[name].append(rate)
    return rates


def _rate(tree: Path, module: str, function: str, arguments: dict[str, Any]) -> Any:
    """What a function of this folder returns, with the packages of a tree."""
    # in the tree: Python looks for packages in the current folder first, which may be that of the other one
    return in_process(module, function, arguments, cwd=tree, variables={"PYTHONPATH": f"{FOLDER}{os.pathsep}{tree}"})


def place() -> str:
    """The folder that holds the packages; runs in a separate process."""
    import shards

    return str(Path(shards.__file__).resolve().parents[1])


def packed(source: str, out: str, workers: int, short_side: int) -> float:
    """Images per second of a packing with --resize; runs in a separate process."""
    from shards import PackOptions, pack

    images = sum(1 for _ in Path(source).rglob("*.jpg"))
    # a process packs a whole shard: with eight shards each, none idles at the end for long, as in a large set
    options = PackOptions(Path(source), out, workers=workers, shard_size=-(-images // (8 * workers)), resize=short_side)
    return images / _seconds(lambda: pack(options, progress=False), Path(out))


def by_pillow(source: str, out: str, workers: int, short_side: int) -> float:
    """Images per second of a pool of Pillow processes, which decode in full; runs in a separate process."""
    from _packing.rivals import pillow_pool
    from shards.images.options import EncodeOptions

    paths = sorted(map(str, Path(source).rglob("*.jpg")))
    pool = partial(pillow_pool, paths, Path(out), workers, short_side, EncodeOptions.quality, scaled=False)
    return len(paths) / _seconds(pool, Path(out))


def _seconds(work: Callable[[], object], out: Path) -> float:
    """Seconds of one run into an empty folder, which is then removed."""
    out.mkdir()
    os.sync()  # so that the previous run's writes are not part of this one
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    shutil.rmtree(out)
    return seconds


def markdown(result: dict[str, Any]) -> str:
    """Rates and ratios as a table."""
    here = result["environment"]
    lines = ["| | images/s | lowest to highest |", "| --- | ---: | --- |"]
    for name, values in result["runs"].items():
        lines.append(f"| {name} | {result['imgs_per_sec'][name]:,.0f} | {min(values):,.0f} to {max(values):,.0f} |")
    lines += ["", *(f"- {name}: {value:.2f}" for name, value in result["ratios"].items()), ""]
    lines.append(
        f"{here['cpu']}, {result['workers']} processes or threads on as many cores; {result['images']:,} images packed"
        f" with a short side of {result['short_side']}, two views of {result['image_size']} pixels; median of"
        f" {len(values)} runs in turn."
        f" Before: commit {result['against']}; after: {here['commit']}. {here['date']}; Python {here['python']},"
        f" Pillow {here['packages']['Pillow']}, torch {here['packages']['torch']}."
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    script(Args, run)
