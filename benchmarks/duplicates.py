"""Precision and recall of finding copies by the distance of hashes, and what the scan and the matching cost.

    python benchmarks/duplicates.py --photos FOLDER [--images 10000] [--json OUT]

The images are parts of photographs that do not overlap, with exact and near copies of some of them. They are compared
by the code that packing runs. The scan is timed beside packing, in turn, on larger parts of the same photographs.
Without --photos, the photographs are made of noise; the hash finds these more easily than real ones.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from _command import BenchmarkError, script
from _memory import memory
from _packing.copies import KINDS, Picture, pictures
from _packing.table import duplicates as table
from _processes import in_process
from _results import show, write_beside, write_json
from fastmoco.demo.made import make_images
from fastmoco.flags import at_least
from pipelines._threads import cores_of_rank
from shards.images.encode import encode
from shards.images.options import EncodeOptions
from shards.packing.duplicates.deciding import copies
from shards.packing.duplicates.fingerprint import EXACT_ONLY, HASHED, NEAR, fingerprint
from shards.packing.duplicates.matching import near_copies
from shards.packing.options import NEAR_DISTANCE
from shards.packing.plan import Entry

DISTANCES = (0, 8, 16, 24, 32, 40, 48, 56, 64)


@dataclass(frozen=True)
class Args:
    """Measure how well copies are found, and the cost."""

    photos: Path | None = None
    """Folder of large photographs, searched to any depth."""
    images: int = 10_000
    """Images in all."""
    exact: int = 500
    """Exact copies among them."""
    near: int = 500
    """Near copies among them."""
    cost: int = 400
    """Images of the cost of the scan."""
    matching: tuple[int, ...] = (10**5, 10**6)
    """Numbers of images whose matching is timed."""
    repeats: int = 5
    """Repetitions of the costs."""
    json: Path | None = None
    """File for the rows and the environment."""


def run(args: Args) -> None:
    """Measure, print, and write the rows and their tables."""
    at_least(1, args, "images", "exact", "near", "cost", "matching", "repeats")
    if args.exact + args.near > args.images // 2:
        raise BenchmarkError(f"--exact {args.exact} and --near {args.near} are more copies than originals")
    result: dict[str, Any] = {"default": NEAR_DISTANCE}
    with tempfile.TemporaryDirectory(prefix="fastmoco-") as name:
        folder = Path(name)
        photos = _photos(args.photos, folder / "made")
        made = pictures(photos, args.images, args.exact, args.near, folder / "images", cores_of_rank())
        rows, flat = _rows(made)
        height, width = _size(made[0])
        large = pictures(photos, args.cost, 0, 0, folder / "cost", cores_of_rank())[: args.cost]
        data = [picture.path.read_bytes() for picture in large]
        result["settings"] = {
            **{"images": args.images, "exact": args.exact, "near": args.near, "photos": len(photos), "flat": flat},
            **{"source": "photographs" if args.photos else "made images", "width": width, "height": height},
            **{"cost_images": len(data), "cost_bytes": round(statistics.mean(map(len, data)))},
            **{"cost_height": _size(large[0])[0], "cost_width": _size(large[0])[1], "repeats": args.repeats},
        }
        result |= {"rows": rows, "cost": _cost(data, args.repeats)}
    result["matching"] = [
        show({"images": count, **in_process("duplicates", "measure", {"count": count})}) for count in args.matching
    ]
    if args.json:
        from _environment import environment

        write_json(args.json, {"environment": environment(), **result})
        write_beside(args.json, table({"environment": environment(), **result}))


def _photos(given: Path | None, folder: Path) -> list[Path]:
    if given is None:
        make_images(folder, classes=4, per_class=8, size=1024, seed=0)
        given = folder
    found = sorted(path for path in given.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    if not found:
        raise BenchmarkError(f"--photos {given} holds no photographs (.jpg, .png, .webp)")
    return found


def _size(picture: Picture) -> tuple[int, int]:
    found = encode(picture.path.read_bytes())
    return found.height, found.width


def _fingerprint(picture: Picture) -> bytes:
    return fingerprint(picture.path.read_bytes(), EncodeOptions(), near=True).tobytes()


def _rows(made: list[Picture]) -> tuple[list[dict[str, Any]], int]:
    """A row for each distance, and the number of images without a hash."""
    with ProcessPoolExecutor(cores_of_rank(), get_context("spawn")) as pool:
        found = np.frombuffer(b"".join(pool.map(_fingerprint, made, chunksize=64)), NEAR)
    entries = {number: Entry(str(picture.path).encode()) for number, picture in enumerate(made)}
    clear = {picture.origin for number, picture in enumerate(made)
             if picture.kind == "original" and found["state"][number] == HASHED}  # fmt: skip
    rows = [_row(found, made, entries, clear, distance) for distance in (None, *DISTANCES)]
    return rows, int((found["state"] == EXACT_ONLY).sum())


def _row(
    found: np.ndarray, made: list[Picture], entries: dict[int, Entry], clear: set[int], distance: int | None
) -> dict[str, Any]:
    decision = copies(
        found, 0, True, distance, lambda numbers: {int(number): entries[int(number)] for number in numbers}
    )
    pairs = [(made[image], made[of]) for image, of in zip(decision.image.tolist(), decision.of.tolist(), strict=True)]
    right = {picture.origin: pair for pair in pairs for picture in pair if pair[0].origin == pair[1].origin}
    wrong = [pair for pair in pairs if pair[0].origin != pair[1].origin]
    near = [picture for picture in made if picture.kind in KINDS]
    row: dict[str, Any] = {
        "distance": -1 if distance is None else distance,
        "precision": round((len(pairs) - len(wrong)) / max(len(pairs), 1), 4),
        "recall": _share([picture for picture in made if picture.kind != "original"], right),
        "exact": _share([picture for picture in made if picture.kind == "exact"], right),
    }
    row["clear"] = _share([picture for picture in near if picture.origin in clear], right)
    for kind in KINDS:
        row[kind] = _share([picture for picture in near if picture.kind == kind], right)
    row["wrong"] = len(wrong)
    row["wrong_of_others"] = sum(one.photo != other.photo for one, other in wrong)
    return show(row)


def _share(of: list[Picture], right: dict[int, Any]) -> float | None:
    return round(sum(picture.origin in right for picture in of) / len(of), 4) if of else None


def _cost(data: list[bytes], repeats: int) -> list[dict[str, Any]]:
    """Images per second of packing and of the scan, in this process, in turn."""
    works: dict[str, Callable[[bytes], object]] = {
        "pack, checked": encode,
        "pack, resized to 256": partial(encode, options=EncodeOptions(resize=256)),
        "scan, exact": partial(fingerprint, options=EncodeOptions(), near=False),
        "scan, near": partial(fingerprint, options=EncodeOptions(), near=True),
    }
    rates: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work(data[0])
    for _ in range(repeats):
        for name, work in works.items():
            begun = time.perf_counter()
            for each in data:
                work(each)
            rates[name].append(len(data) / (time.perf_counter() - begun))
    return [
        show({
            "work": name,
            "rate": round(statistics.median(found), 1),
            "lowest": round(min(found), 1),
            "highest": round(max(found), 1),
        })
        for name, found in rates.items()
    ]  # fmt: skip


def measure(count: int) -> dict[str, float]:
    """Match hashes that are all different, in this process."""
    chance = np.random.default_rng(0)
    hashes = chance.integers(0, 2**64, (count, 6, 4), np.uint64)
    colours = chance.integers(0, 256, (count, 48)).astype(np.uint8)
    with contextlib.redirect_stdout(sys.stderr):
        near_copies(hashes[:2], colours[:2], NEAR_DISTANCE)  # compiles
    before = memory("VmRSS") - hashes.nbytes - colours.nbytes
    begun = time.perf_counter()
    near_copies(hashes, colours, NEAR_DISTANCE)
    seconds = time.perf_counter() - begun
    return {"seconds": round(seconds, 2), "mb": round((memory("VmHWM") - before) / 2**20, 1)}


if __name__ == "__main__":
    script(Args, run)
