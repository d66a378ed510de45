"""Images and megabytes per second of packing, compared with GNU tar, webdataset, FFCV, Pillow and decoding alone.

    python benchmarks/packing.py --photos FOLDER [--images N] [--large N] [--workers N] [--json OUT]

All contestants run in turn, several times, on the same files and with the same number of processes (GNU tar and
webdataset's ShardWriter use one). Medians count, and ratios are of medians. A rate covers the whole command: starting
processes, planning, and syncing to the disk if it does that. Files are read once beforehand, so they come from memory.
The photographs are linked as often as --images requires; the large images are the same photographs, enlarged.
"""

from __future__ import annotations

import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from _command import BenchmarkError, script
from _packing import rivals
from _packing.photos import enlarged, linked
from _results import write_json
from fastmoco.flags import at_least
from shards import PackOptions, pack
from shards.images.encode import encode
from shards.images.options import EncodeOptions

RATIOS = {
    "checked / decode only": ("pack, checked", "decode only"),
    "verify --decode / decode only": ("verify --decode", "decode only"),
    "unchecked / GNU tar": ("pack, unchecked", "GNU tar"),
    "unchecked / GNU tar, synced": ("pack, unchecked", "GNU tar, synced"),
    "unchecked / ShardWriter": ("pack, unchecked", "webdataset ShardWriter"),
    "resized / Pillow pool": ("pack, resized", "Pillow pool"),
    "resized / Pillow pool, scaled decoding": ("pack, resized", "Pillow pool, scaled decoding"),
    "large: resized / Pillow pool": ("large: pack, resized", "large: Pillow pool"),
    "large: resized / Pillow pool, scaled decoding": (
        "large: pack, resized", "large: Pillow pool, scaled decoding",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Args:
    """Compare packing with other programs."""

    photos: Path
    """Folder of JPEG photographs, searched to any depth."""
    images: int = 20_000
    """Images to pack unchanged; photographs are linked repeatedly if there are fewer."""
    resized: int = 4000
    """Images to resize."""
    large: int = 300
    """Images to enlarge and then resize; 0: none."""
    enlarged: float = 4.0
    """Factor by which their sides are enlarged."""
    short_side: int = 256
    """Short side of resized images."""
    quality: int = 90
    """JPEG quality of resized images."""
    workers: int = len(os.sched_getaffinity(0))
    """Number of processes."""
    repeats: int = 3
    """Runs of each contestant."""
    work: Path | None = None
    """Folder for temporary files, on the photographs' file system; default: the system's."""
    json: Path | None = None
    """File for the figures and the environment."""


def run(args: Args) -> None:
    """Measure, print the table, and write the figures."""
    at_least(1, args, "images", "resized", "short_side", "workers", "repeats")
    at_least(0, args, "large")
    photos = sorted(args.photos.rglob("*.jp*g"))
    if not photos:
        raise BenchmarkError(f"no JPEG photographs in --photos {args.photos}; give a folder with .jpg or .jpeg files")
    with tempfile.TemporaryDirectory(prefix="packing-", dir=args.work) as folder:
        result = measure(args, photos, Path(folder))
    print_table(result)
    if args.json:
        write_json(args.json, result)


def measure(args: Args, photos: list[Path], folder: Path) -> dict[str, Any]:
    """Rates of all contestants, ratios, and the fidelity of resized images, in plain values."""
    from _environment import environment  # imports torch, which forked pools should not carry

    # fewer images where one costs more time; ratios are only formed within a source
    sources = {"": linked(photos, args.images, folder / "photos"), "r": linked(photos, args.resized, folder / "some")}
    if args.large:
        sources["large"] = enlarged(photos, args.large, args.enlarged, folder / "large")
    runs = contestants(args, sources, folder)
    rates: dict[str, list[float]] = {name: [] for name in runs}
    # in turn, so that a change of other load or of the disk falls on all contestants alike
    for turn in range(args.repeats):
        for name, (run, source) in runs.items():
            print(f"{turn + 1} of {args.repeats}: {name}", file=sys.stderr)
            rates[name].append(len(sources[source]) / _seconds(run, folder / "out"))
    megabytes = {key: sum(os.path.getsize(path) for path in paths) / 1e6 for key, paths in sources.items()}
    median = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "imgs_per_sec": median,
        "mb_per_sec": {n: median[n] * megabytes[runs[n][1]] / len(sources[runs[n][1]]) for n in runs},
        "ratios": {name: median[a] / median[b] for name, (a, b) in RATIOS.items() if a in median and b in median},
        "resized_size": resized_size(sources["r"], args),
        "psnr": {key or "photos": fidelity(sources[key], args) for key in sources if key != "r"},
        "runs": rates,
        "images": {key or "photos": len(paths) for key, paths in sources.items()},
        "workers": args.workers,
        "short_side": args.short_side,
        "quality": args.quality,
        "decoder": "simplejpeg",
        "environment": environment(),
    }


def contestants(
    args: Args, sources: dict[str, list[str]], folder: Path
) -> dict[str, tuple[Callable[[Path], object], str]]:
    """The contestants by name: a function that writes to an empty folder, and the name of its source."""
    workers, paths = args.workers, sources[""]

    def packed(source: str, **options: Any) -> Callable[[Path], object]:
        src = Path(sources[source][0]).parents[1]
        # a process packs a whole shard: with eight shards each, none idles at the end for long, as in a large set
        size = min(rivals.SHARD_SIZE, -(-len(sources[source]) // (8 * workers)))
        return lambda out: pack(PackOptions(src, out, workers=workers, shard_size=size, **options), progress=False)

    def pillow(source: str, scaled: bool) -> Callable[[Path], object]:
        size = args.short_side, args.quality
        return lambda out: rivals.pillow_pool(sources[source], out, workers, *size, scaled)

    resize = {"resize": args.short_side, "quality": args.quality}
    packed_set = folder / "set"
    # the set that is verified is made before the clock starts
    packed("")(packed_set)
    runs: dict[str, tuple[Callable[[Path], object], str]] = {
        # what the check costs at least: packing decodes every image, too
        "decode only": (lambda _: rivals.decode_only(paths, workers), ""),
        "pack, checked": (packed(""), ""),
        "pack, unchecked": (packed("", check=False), ""),
        "verify": (lambda _: rivals.verified(packed_set, workers, decode=False), ""),
        "verify --decode": (lambda _: rivals.verified(packed_set, workers, decode=True), ""),
        # both: packing syncs what it writes, which GNU tar does not do by itself
        "GNU tar": (lambda out: rivals.gnu_tar(paths, out, synced=False), ""),
        "GNU tar, synced": (lambda out: rivals.gnu_tar(paths, out, synced=True), ""),
        "webdataset ShardWriter": (lambda out: rivals.shard_writer(paths, out), ""),
    }
    if rivals.has_ffcv():
        runs["FFCV DatasetWriter"] = (lambda out: rivals.ffcv_writer(paths, out, workers), "")
    for source, prefix in (("r", ""), ("large", "large: ")):
        if source in sources:
            runs[f"{prefix}pack, resized"] = (packed(source, **resize), source)
            # both: --resize decodes at a reduced size, too; full decoding is Pillow's default
            runs[f"{prefix}Pillow pool"] = (pillow(source, scaled=False), source)
            runs[f"{prefix}Pillow pool, scaled decoding"] = (pillow(source, scaled=True), source)
    return runs


def _seconds(run: Callable[[Path], object], out: Path) -> float:
    """Seconds of one run into an empty folder, which is then removed."""
    out.mkdir()
    os.sync()  # so that the previous run's writes are not part of this one
    started = time.perf_counter()
    run(out)
    seconds = time.perf_counter() - started
    shutil.rmtree(out)
    return seconds


def fidelity(paths: list[str], args: Args) -> dict[str, float]:
    """Mean PSNR in dB against a float Lanczos reference, of packed images and of Pillow's two ways."""
    ours, pillows, scaled = [], [], []
    options = EncodeOptions(args.short_side, args.quality)
    for path in paths[:: max(1, len(paths) // 30)]:
        data = Path(path).read_bytes()
        expected = lanczos_reference(data, args.short_side)
        ours.append(psnr(encode(data, options).data, expected))
        pillows.append(psnr(rivals.resized_by_pillow(data, args.short_side, args.quality, scaled=False), expected))
        scaled.append(psnr(rivals.resized_by_pillow(data, args.short_side, args.quality, scaled=True), expected))
    means = (statistics.fmean(values) for values in (ours, pillows, scaled))
    return dict(zip(("packed", "Pillow", "Pillow, scaled decoding"), means, strict=True))


def resized_size(paths: list[str], args: Args) -> float:
    """Size of resized images relative to the originals."""
    options, datas = EncodeOptions(args.short_side, args.quality), [Path(path).read_bytes() for path in paths[:100]]
    return sum(len(encode(data, options).data) for data in datas) / sum(map(len, datas))


def lanczos_reference(data: bytes, short_side: int) -> np.ndarray:
    """float32[H, W, 3] of a fully decoded image, resized without rounding in between."""
    with Image.open(io.BytesIO(data)) as image:
        factor = short_side / min(image.size)
        size = round(image.width * factor), round(image.height * factor)
        bands = [band.convert("F").resize(size, Image.Resampling.LANCZOS) for band in image.convert("RGB").split()]
    return np.stack([np.asarray(band) for band in bands], axis=-1).clip(0, 255)


def psnr(jpeg: bytes, expected: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of a JPEG's pixels."""
    with Image.open(io.BytesIO(jpeg)) as image:
        error = np.asarray(image.convert("RGB"), np.float64) - expected
    return float(10 * np.log10(255**2 / np.mean(error**2)))


def print_table(result: dict[str, Any]) -> None:
    """Rates, ratios and fidelity."""
    table = Table(title=f"packing, {result['workers']} processes; decoder: {result['decoder']}")
    table.add_column("what")
    for name in ("images/s", "lowest", "highest", "MB/s"):
        table.add_column(name, justify="right")
    for name, values in result["runs"].items():
        figures = (result["imgs_per_sec"][name], min(values), max(values), result["mb_per_sec"][name])
        table.add_row(name, *(f"{value:,.0f}" for value in figures))
    console = Console()
    console.print(table)
    for name, value in result["ratios"].items():
        console.print(f"{name}: {value:.2f}")
    for source, values in result["psnr"].items():
        console.print(f"PSNR, {source}: " + ", ".join(f"{name} {value:.2f} dB" for name, value in values.items()))


if __name__ == "__main__":
    script(Args, run)
