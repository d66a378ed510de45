"""Time and peak memory of planning, and of reading one shard's part of the plan, by the number of records.

    python benchmarks/planning.py --records 10000 100000 1000000 10000000 --json planning.json
    python benchmarks/planning.py --tars 12 --json planning_tars.json

The planner is `fastmoco pack --dry-run`; the worker reads its shard's part of a saved plan. Each is a separate process
and its peak memory is the kernel's VmHWM (Linux only). The list is generated, with paths of 60 bytes; no image is read.

The second command plans from tars as img2dataset writes them, with one process and with as many as there are cores, in
turn; after a turn that is dropped the median of three counts.
"""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _command import script
from _memory import memory
from _processes import in_process
from _results import show, write_json
from fastmoco.flags import at_least
from shards import PackOptions, cli
from shards.packing.plan import WORK, keep_plan, read_shard
from shards.packing.planning import make_plan
from shards.packing.sources import open_source
from shards.pool import cores
from shards.storage.store import open_store

_IMAGES = 6000  # of a tar


@dataclass(frozen=True)
class Args:
    """Measure planning and the reading of one shard's part of the plan."""

    records: tuple[int, ...] = (10**4, 10**5, 10**6, 10**7)
    """Numbers of listed records to measure."""
    tars: int = 0
    """Number of tars to plan from in place of lists, of 6,000 images with a JSON and a caption each."""
    json: Path | None = None
    """File for the rows and the environment."""


def run(args: Args) -> None:
    """Measure, print a line for each size, and write the rows."""
    at_least(1, args, "records")
    at_least(0, args, "tars")
    rows = _from_tars(args.tars) if args.tars else [_row(count) for count in args.records]
    if args.json:
        from _environment import environment  # imports torch, which the measured processes must not

        write_json(args.json, {"environment": environment(), "rows": rows})


def _row(count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="fastmoco-") as name:
        folder = Path(name)
        with open(folder / "list.txt", "w", encoding="ascii") as file:
            # 60 bytes each; the multiplicative hash makes names that are unique and in no order, as in a crawl
            file.writelines(f"crawl/2026-11/{number % 1000:03d}/{number * 2654435761 % 2**64:038d}.jpg\n"
                            for number in range(count))  # fmt: skip
        # a dry run keeps no plan, so a third process makes the one that the worker reads
        planner, _, worker = (
            in_process("planning", "measure", {"part": part, "folder": name})
            for part in ("planner", "keeper", "worker")
        )
        plan_bytes = (folder / "out" / WORK / "plan.bin").stat().st_size
    return show(
        {
            "records": count,
            "plan_bytes": plan_bytes,
            "planner_seconds": planner["seconds"],
            "planner_cpu_seconds": planner["cpu_seconds"],
            "planner_rss_mb": planner["rss_mb"],
            "worker_seconds": worker["seconds"],
            "worker_rss_mb": worker["rss_mb"],
        }
    )


def _from_tars(tars: int) -> list[dict[str, Any]]:
    seconds: dict[int, list[float]] = {1: [], cores(): []}
    with tempfile.TemporaryDirectory(prefix="fastmoco-") as name:
        folder = Path(name)
        for number in range(tars):
            _write_tar(folder / f"{number:05d}.tar", number)
        for turn in range(4):
            for workers, of_turns in seconds.items():
                words = ["--src", name, "--out", f"{name}-set", "--workers", str(workers), "--dry-run"]
                begun = time.perf_counter()
                with contextlib.redirect_stdout(sys.stderr):
                    cli.run(words)
                if turn:
                    of_turns.append(time.perf_counter() - begun)
    images = tars * _IMAGES
    rows = [(workers, statistics.median(of_turns)) for workers, of_turns in seconds.items()]
    return [
        show({"tars": tars, "images": images, "workers": workers, "seconds": round(took, 3),
              "us_per_image": round(1e6 * took / images, 1)}) for workers, took in rows
    ]  # fmt: skip


def _write_tar(path: Path, number: int) -> None:
    """A tar of images of a few kilobytes, which are not read, each with a JSON and a caption."""
    with tarfile.open(path, "w") as tar:
        for image in range(_IMAGES):
            key = f"{number:05d}{image:04d}"
            about = {
                "caption": "a photograph",
                "url": f"https://example.org/{key}.jpg",
                "key": key,
                "status": "success",
            }
            for extension, data in (
                ("jpg", bytes(3000)),
                ("json", json.dumps(about).encode()),
                ("txt", b"a photograph"),
            ):
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def measure(part: str, folder: str) -> dict[str, float]:
    """Run one part in this process."""
    src, out = Path(folder) / "list.txt", Path(folder) / "out"
    store = open_store(out)
    # CPU time as well, which other work on the machine does not lengthen
    begun, begun_cpu = time.perf_counter(), time.process_time()
    if part == "planner":
        # the last line of stdout is the answer of `in_process`
        with contextlib.redirect_stdout(sys.stderr):
            code = cli.run(["--src", str(src), "--out", str(out), "--dry-run"])
        if code:
            raise RuntimeError(f"fastmoco pack --dry-run ends with {code}")
    elif part == "keeper":
        options, making = PackOptions(src, out), out / WORK / "making"
        keep_plan(store, making, make_plan(options, open_source(options), making))
    else:
        read_shard(store, 0)
    return {
        "seconds": round(time.perf_counter() - begun, 3),
        "cpu_seconds": round(time.process_time() - begun_cpu, 3),
        "rss_mb": round(memory("VmHWM") / 2**20, 1),
    }


if __name__ == "__main__":
    script(Args, run)
