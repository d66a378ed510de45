"""Measures the contestants of `imgs_per_sec.py --peers` in turn and combines their rates."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from _command import BenchmarkError
from _environment import environment
from _peers.contestants import CONTESTANTS, Contestant
from _peers.work import Work
from _processes import ProcessFailed, in_process
from shards import PackOptions, ShardSet, pack

STARTING = 120.0  # time limit in seconds for starting and stopping, besides the measurement


@dataclass(frozen=True)
class Settings:
    """Settings of the comparison.

    Attributes:
        batch_size: images per batch.
        image_size: side of a view in pixels.
        workers: number of threads or worker processes, and of cores to run on.
        images: maximum number of images to use.
        seconds: minimum duration of one measurement.
        repeats: measurements of each contestant.
        only: names of the contestants; empty for all.
        device: where the batches are delivered, `cpu` or `cuda`.
    """

    batch_size: int
    image_size: int
    workers: int
    images: int
    seconds: float
    repeats: int
    only: Sequence[str] = ()
    device: str = "cpu"


def compare(shards: ShardSet, settings: Settings, console: Console) -> dict[str, Any]:
    """Measure all contestants in turn, several times.

    Returns:
        Rows, ratios, settings and environment, in plain values.

    Raises:
        BenchmarkError: a contestant is unknown or fails, or there are too few images.
        SampleError: an image of the set is damaged.
    """
    if settings.images < settings.batch_size:
        raise BenchmarkError(f"--images {settings.images} is less than a batch of {settings.batch_size}")
    chosen = choose(settings.only, settings.device)
    present = [contestant for contestant in chosen if not contestant.missing]
    rates: dict[str, list[float]] = {contestant.name: [] for contestant in present}
    with tempfile.TemporaryDirectory(prefix="imgs_per_sec-peers-") as folder:
        work = Work(Path(folder), settings.batch_size, settings.image_size, settings.workers, settings.device)
        with console.status("preparing the images"):
            images = prepare(shards, settings.images, work)
        # in turn and each in a process of its own: other load on the machine falls on all alike, and threads or memory
        # that one leaves behind do not slow the next
        for turn in range(settings.repeats):
            for contestant in present:
                with console.status(f"{turn + 1} of {settings.repeats}: {contestant.label}"):
                    rates[contestant.name].append(rate(contestant, work, settings.seconds))
    rows = [row(contestant, rates.get(contestant.name)) for contestant in chosen]
    return {
        "rows": rows,
        "ratios": ratios(rows),
        "settings": asdict(settings) | {"images": images, "augmentation": asdict(work.spec)},
        "gpu": torch.cuda.get_device_name() if settings.device == "cuda" else None,
        "environment": environment(),
    }


def choose(names: Sequence[str], device: str) -> list[Contestant]:
    """A device's contestants with these names, or all; raises BenchmarkError for an unknown one."""
    known = CONTESTANTS[device]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BenchmarkError(f"no contestant {unknown[0]!r}; known: {', '.join(known)}")
    return [contestant for contestant in known.values() if not names or contestant.name in names]


def prepare(shards: ShardSet, images: int, work: Work) -> int:
    """Write the first `images` of a set as files and as a new shard set; returns their number.

    The files are read back from the new set, so both contain the same bytes. The set has several shards per worker, for
    loaders that distribute shards over workers.
    """
    images = min(images, len(shards))
    raw = work.folder / "raw"
    for sample_id in range(images):
        path = raw / f"{sample_id:08d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(shards.read(sample_id))
    pack(PackOptions(raw, work.shards, shard_size=max(1, images // (4 * work.workers))), progress=False)
    with ShardSet(work.shards) as packed:
        for sample_id in range(len(packed)):
            # ImageFolder needs class folders; no contestant uses the label
            path = work.images / f"class {sample_id % 10}" / f"{sample_id:08d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            # from the packed set and not from `raw`: packing encodes images that are turned or no JPEGs again
            path.write_bytes(packed.read(sample_id))
        return len(packed)


def rate(contestant: Contestant, work: Work, seconds: float) -> float:
    """Images per second of one measurement in a separate process; raises BenchmarkError."""
    given = asdict(work) | {"folder": str(work.folder), "contestant": contestant.name, "seconds": seconds}
    variables = {"NO_ALBUMENTATIONS_UPDATE": "1"}  # otherwise it checks for a newer version over the network
    try:
        return in_process("_peers.run", "timed", given, timeout=STARTING + 10 * seconds, variables=variables)
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"{contestant.label} has not finished after {error.timeout:.0f} seconds") from None
    except ProcessFailed as error:
        raise BenchmarkError(
            f"{contestant.label} fails: {error.reason} (to skip it, name the others in --only)"
        ) from None


def row(contestant: Contestant, rates: list[float] | None) -> dict[str, Any]:
    """The row of a contestant; `missing` says why it has no rates."""
    values: dict[str, Any] = {name: getattr(contestant, name) for name in ("name", "label", "kind", "note", "missing")}
    if rates:
        values |= {"imgs_per_sec": statistics.median(rates), "lowest": min(rates), "highest": max(rates), "runs": rates}
    return values


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Ratios of fastmoco's median to those of the original, decoding and the fastest peer, if measured.

    Of fastmoco's backends the first counts that was measured: on a GPU that is DALI.
    """
    measured = {row["name"]: row for row in rows if "imgs_per_sec" in row}
    ours = next((name for name, row in measured.items() if row["kind"] == "ours"), None)
    if ours is None:
        return {}
    peers = [row for row in measured.values() if row["kind"] == "peer"]
    against = {f"{ours} / {name}": measured[name] for name in ("original", "decode-only") if name in measured}
    if peers:
        fastest = max(peers, key=lambda row: row["imgs_per_sec"])
        against[f"{ours} / fastest peer ({fastest['name']})"] = fastest
    return {name: measured[ours]["imgs_per_sec"] / row["imgs_per_sec"] for name, row in against.items()}
