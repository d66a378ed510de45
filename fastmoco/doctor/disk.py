"""Rates of the disk below a folder, measured past the system's page cache."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fastmoco.doctor.findings import Finding, gib

FILE = 256 << 20  # bytes, written and read
LEAST_FREE = 2 << 30
"""Bytes. A checkpoint of a ResNet-50 takes 0.5 GB, and three are kept."""
CHUNK = 8 << 20
IMAGE = 128 << 10
"""Bytes of a random read, about one JPEG of ImageNet."""
READERS = 8
SECONDS = 1.0  # of each measurement


@dataclass(frozen=True)
class Rates:
    """Bytes a second; `cached`: the reads came, or may have come, from memory."""

    write: float
    read: float
    random_read: float
    cached: bool


def disk(folder: Path, images_per_second: float | None) -> Finding:
    """Free space and rates below a folder.

    Args:
        folder: An existing folder.
        images_per_second: Rate of the backend, to compare with; None if it is not known.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):  # a file system that takes no files has no free space either
            free = shutil.disk_usage(folder).free
        measured = rates(folder) if free >= LEAST_FREE else None
    except OSError as error:
        remedy = "give a folder that you may write to: --dir here, --out in training"
        return Finding("disk", f"{folder} cannot be written ({error.strerror or error})", "stop", remedy)
    return of_rates(folder, free, measured, images_per_second)


def of_rates(folder: Path, free: int, measured: Rates | None, images_per_second: float | None) -> Finding:
    """What free space and rates mean; the rates are None if there was no room to measure them."""
    if measured is None:
        text = f"{folder}: {gib(free)} free, too little to measure"
        return Finding("disk", text, "warn", "make room for checkpoints")
    images = measured.random_read / IMAGE
    cached = " (from memory, not from a disk)" if measured.cached else ""
    text = (
        f"{folder}: {gib(free)} free, writes {_per_second(measured.write)}, reads {_per_second(measured.read)}, "
        f"at random {images:,.0f} images/s of {IMAGE >> 10} KiB{cached}"
    )
    if images_per_second is not None and images < images_per_second and not measured.cached:
        text += f", fewer than the {images_per_second:,.0f} that are decoded"
        remedy = "put the shards on a local disk, or pack with --resize to make them smaller"
        return Finding("disk", text, "warn", remedy)
    return Finding("disk", text)


def rates(folder: Path, limit: int = FILE) -> Rates:
    """Measure with one temporary file of at most `limit` bytes, for about three seconds.

    Writing ends with fsync. Reading is direct (O_DIRECT), so that no byte comes from the page cache. `cached` is set
    where a file system refuses that, or is itself in memory.

    Raises:
        OSError: The folder cannot be written or read.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fastmoco-doctor-") as temporary:
        path = Path(temporary) / "data"
        size, write = _write(path, limit)
        descriptor, cached = _open_past_the_cache(path)
        try:
            chunks = [start * CHUNK for start in range(size // CHUNK)]
            read = _read(descriptor, chunks, CHUNK, threads=1)
            places = [start * IMAGE for start in range(size // IMAGE)]
            random.Random(0).shuffle(places)
            random_read = _read(descriptor, places, IMAGE, threads=READERS)
        finally:
            os.close(descriptor)
    return Rates(write, read, random_read, cached or file_system(folder) in ("tmpfs", "ramfs"))


def _write(path: Path, limit: int) -> tuple[int, float]:
    """Size and rate of a file that is written for at most SECONDS; at least one chunk."""
    chunk = random.Random(0).randbytes(CHUNK)  # what a disk can neither compress nor leave out
    size, start = 0, time.perf_counter()
    with path.open("wb", buffering=0) as file:
        while size == 0 or (size < limit and time.perf_counter() - start < SECONDS):
            size += file.write(chunk)
        os.fsync(file.fileno())
    return size, size / (time.perf_counter() - start)


def _open_past_the_cache(path: Path) -> tuple[int, bool]:
    """A descriptor, and whether its reads may come from the page cache."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT), False
    except (OSError, AttributeError):  # refused by the file system; not known on macOS
        descriptor = os.open(path, os.O_RDONLY)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return descriptor, True


def file_system(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Type of the file system that holds a folder, as `ext4`; empty if it is not known."""
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:  # no Linux
        return ""
    place = folder.resolve()
    holding = [(len(point), kind) for _, point, kind, *_ in lines if place.is_relative_to(point)]
    # of several on one point, the last one hides the others
    return max(reversed(holding), key=lambda found: found[0], default=(0, ""))[1]


def _read(descriptor: int, places: list[int], size: int, threads: int) -> float:
    """Bytes a second, from some places in turn, until SECONDS are over or all have been read."""
    start = time.perf_counter()

    def work(own: list[int]) -> int:
        done = 0
        with mmap.mmap(-1, size) as buffer:  # aligned to a page, as direct reads need it
            for place in own:
                done += os.preadv(descriptor, [buffer], place)
                if time.perf_counter() - start > SECONDS:
                    break
        return done

    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(work, [places[number::threads] for number in range(threads)]))
    return done / (time.perf_counter() - start)


def _per_second(rate: float) -> str:
    return f"{rate / 1e6:,.0f} MB/s"
