"""Estimate of the time, traffic and cost of packing a large collection from measured rates, as a Markdown table.

    python benchmarks/billion.py [--images N] [--nodes N] [--cores N] [--out benchmarks/results/billion.md]

The rates are those in results/packing.json and results/planning.json, per core of the machine that they were measured
on; images are assumed to be as large as there. Prices and network speed are assumptions, set by flags.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from _command import BenchmarkError, script
from fastmoco.flags import at_least, positive
from shards.format.index import ROW, idx_bytes
from shards.format.layout import MAX_SHARD_SIZE, MAX_SHARDS
from shards.format.manifest import Manifest, ShardRecord
from shards.words import human_bytes

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Args:
    """Estimate the time, traffic and cost of packing a large collection."""

    images: int = 10**9
    """Images in the collection."""
    shard_size: int = 10_000
    """Images per shard."""
    nodes: int = 64
    """Machines in the Ray cluster."""
    cores: int = 16
    """Cores per machine."""
    gbit: float = 10.0
    """Network bandwidth per machine in Gbit/s, shared by reading and writing."""
    core_hour: float = 0.04
    """Price per core and hour, in dollars."""
    fetch: float = 4e-7
    """Price per read request, in dollars."""
    request: float = 5e-6
    """Price per write request, in dollars."""
    part: int = 16 << 20
    """Bytes per part of an upload."""
    packing: Path = RESULTS / "packing.json"
    """File with the rates of packing."""
    planning: Path = RESULTS / "planning.json"
    """File with the rates of planning."""
    out: Path | None = None
    """File for the table; default: print it."""


def run(args: Args) -> None:
    """Print or write the table."""
    at_least(1, args, "images", "shard_size", "nodes", "cores", "part")
    positive(args, "gbit")
    shards = -(-args.images // args.shard_size)
    if args.shard_size > MAX_SHARD_SIZE:
        raise BenchmarkError(f"--shard-size is {args.shard_size:,}; it must be at most {MAX_SHARD_SIZE:,}")
    if shards > MAX_SHARDS:
        least = -(-args.images // MAX_SHARDS)
        raise BenchmarkError(f"--shard-size {args.shard_size:,} makes {shards:,} shards, more than {MAX_SHARDS:,}; "
                             f"use at least {least:,}")  # fmt: skip
    text = "\n".join(report(args, shards, _json(args.packing), _json(args.planning))) + "\n"
    if args.out is None:
        print(text, end="")
    else:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8")


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def report(args: Args, shards: int, packing: dict[str, Any], planning: dict[str, Any]) -> list[str]:
    """The lines of the table."""
    workers, rates = packing["workers"], packing["imgs_per_sec"]
    size = packing["mb_per_sec"]["pack, checked"] / rates["pack, checked"] * 1e6  # bytes an image
    # the longest list measured: it is nearest to the collection, and the start of the process counts least in it
    largest = max(planning["rows"], key=lambda row: row["records"])
    per_record = {name: largest[name] / largest["records"] for name in ("planner_seconds", "plan_bytes")}
    small = size * packing["resized_size"]
    cpu = packing["environment"]["cpu"]
    packed_at, planned_at = (found["environment"]["commit"] for found in (packing, planning))
    whole, shard = human_bytes(args.images * size), human_bytes(args.shard_size * size)
    lines = [
        f"# {args.images:,} images of {size / 1000:.0f} kB",
        "",
        f"{shards:,} shards of {args.shard_size:,} images, {shard} each; {whole} in all.",
        f"{args.nodes} machines of {args.cores} cores and {args.gbit:g} Gbit/s.",
        f"Rates for a core of: {cpu}; commits {packed_at} (packing) and {planned_at} (planning).",
        f"Assumed: ${args.core_hour:g} for a core and hour, ${args.request * 1e6:g} for a million requests that write.",
        "",
        "| stage | cores | images/s a core | core hours | hours | read | written | $ |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
        _row(args, "plan (one process)", 1, 1 / per_record["planner_seconds"], 0, per_record["plan_bytes"]),
    ]
    stages = (
        ("pack, checked", "pack, checked", size, size),
        ("or: pack, unchecked", "pack, unchecked", size, size),
        (f"or: pack, resized to {packing['short_side']}", "pack, resized", size, small),
        ("verify", "verify", size, 0),
        ("verify --decode", "verify --decode", size, 0),
    )
    for name, key, read, written in stages:
        lines.append(_row(args, name, args.nodes * args.cores, rates[key] / workers, read, written))
    return [*lines, "", *_sizes(args, shards, size, largest, per_record["plan_bytes"])]


def _row(args: Args, name: str, cores: int, rate: float, read: float, written: float) -> str:
    """A stage, whose hours are set by its cores or its network; `read` and `written` are in bytes per image."""
    # a stage of one core runs on one machine and has only that machine's network
    network = args.gbit / 8 * 1e9 * min(cores, args.nodes)
    computing, moving = args.images / rate / 3600, args.images * (read + written) / network / 3600
    # the larger of the two: while one worker reads or writes, others compute
    hours = max(computing / cores, moving)
    uploads = args.images * written / args.part if cores > 1 else 0.0
    dollars = hours * cores * args.core_hour + uploads * args.request
    bound = " (network)" if moving > computing / cores else ""
    moved = " | ".join(human_bytes(args.images * part) for part in (read, written))
    figures = f"{cores:,} | {rate:,.0f} | {computing:,.1f} | {hours:,.2f}{bound}"
    return f"| {name} | {figures} | {moved} | {dollars:,.0f} |"


def _sizes(args: Args, shards: int, size: float, largest: dict[str, Any], plan_bytes: float) -> list[str]:
    """Sizes on disk and in memory."""
    rows = np.zeros(args.shard_size, ROW)
    # numbers as long as real ones, because the .idx is text: three-digit labels, and 2,048 bytes for each sample's
    # headers, padding and label
    rows["size"], rows["label"] = round(size), 999
    rows["offset"] = np.arange(args.shard_size) * (round(size) + 2048)
    record = ShardRecord("shard-000000", args.shard_size, 10**9, "0" * 64, "0" * 64, 0, "0" * 64)
    # the difference of two manifests, so that what does not grow with the shards is not multiplied by them
    few, more = (len(Manifest(0, 0, (), 0, {}, {}, "", {}, (record,) * count).to_bytes()) for count in (1, 1001))
    manifest = (more - few) / 1000 * shards
    plan, part = human_bytes(args.images * plan_bytes), human_bytes(plan_bytes * args.shard_size)
    planner = f"{largest['planner_rss_mb']:.0f} MB of memory at {largest['records']:,} records"
    npy, idx = human_bytes(shards * rows.nbytes), human_bytes(shards * len(idx_bytes(0, rows)))
    worker = f"{largest['worker_rss_mb']:.0f} MB, its shard's rows ({human_bytes(rows.nbytes)})"
    return [
        f"- Images that are objects of their own: a request each, ${args.images * args.fetch:,.0f}; in tars: none.",
        f"- Plan: {plan} in the output, and as much again and 26 bytes an image while it is sorted.",
        f"- Planner: {planner}, bounded by its buffers; a worker's part of the plan: {part}.",
        f"- Worker: {worker}, and the image in hand.",
        f"- Indexes: {npy} of `.npy`, {idx} of `.idx`.",
        f"- Manifest: {human_bytes(manifest)}.",
    ]


if __name__ == "__main__":
    script(Args, run)
