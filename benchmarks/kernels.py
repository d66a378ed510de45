"""Time and peak memory of loss and queue in one step against the original formulation, by N, K and D.

    python benchmarks/kernels.py [--device cuda] [--repeats N] [--json OUT]

Each formulation is first checked against the plain float64 reference (loss, gradient, queue). Then all are timed in
turn, forward and backward, including the enqueuing of the keys; the median counts. On a GPU events time replays of a
graph; only the original, which waits for the device in every step, is launched each time. Peak memory is what a step
allocates beyond queries, keys and queue: on a CPU the kernel's VmHWM in a separate process (Linux only), on a GPU as
counted by torch's allocator.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from _command import BenchmarkError, script
from _contrasts import WAYS, Contrast, unit
from _environment import environment
from _memory import memory
from _processes import in_process
from _results import write_beside, write_json
from _timing import Times, timed
from fastmoco.flags import at_least
from fastmoco.kernels import implementation, reference

TEMPERATURE = 0.07
SHAPES = (
    *((256, 4096, 128), (256, 65_536, 128), (256, 1_048_576, 128)),
    *((32, 65_536, 128), (1024, 65_536, 128), (256, 65_536, 64), (256, 65_536, 256)),
)
"""N, K, D: a step of the papers (256, 65,536, 128), with each of the three also smaller and larger."""

CHECKED_LOGITS = 2**26
"""Above this number of logits the float64 check takes minutes; then only sixteen queries are checked."""


@dataclass(frozen=True)
class Args:
    """Time and memory of loss and queue, forward and backward, against the original formulation."""

    shapes: tuple[int, ...] = tuple(number for shape in SHAPES for number in shape)
    """N, K and D of each measurement, three numbers each; K is a multiple of N, as the original needs."""
    device: str | None = None
    """cpu or cuda; default: cuda if there is a GPU, else cpu."""
    repeats: int = 7
    """Timings of each formulation, in turn."""
    json: Path | None = None
    """File for the rows and the environment; the table (.md) is written beside it."""


def run(args: Args) -> None:
    """Measure, print the table, and write rows and table."""
    at_least(1, args, "repeats", "shapes")
    shapes = list(zip(args.shapes[::3], args.shapes[1::3], args.shapes[2::3], strict=False))
    if not shapes or 3 * len(shapes) != len(args.shapes):
        raise BenchmarkError(f"--shapes has {len(args.shapes)} values; give N, K and D of each measurement")
    for n, k, d in shapes:
        if k % n:
            raise BenchmarkError(f"--shapes {n} {k} {d}: K must be a multiple of N")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BenchmarkError(f"--device {device}, but torch finds no GPU; use --device cpu")
    load = round(os.getloadavg()[0], 2)  # other processes slow a CPU's rows and widen their spread
    rows = measure(shapes, torch.device(device), args.repeats)
    text = markdown(rows)
    print(text, end="")
    if args.json:
        result = {"environment": environment(), "load_before": load, "temperature": TEMPERATURE, "rows": rows}
        write_json(args.json, result)
        write_beside(args.json, text)


def measure(shapes: Sequence[tuple[int, int, int]], device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """A row for each shape and formulation."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    rows = []
    for n, k, d in shapes:
        query, key = unit(n, d, device, 1), unit(n, d, device, 2)
        checked = n if n * k <= CHECKED_LOGITS else min(n, 16)
        errors = {way: error(way, query[:checked], key[:checked], k) for way in WAYS}
        times = times_of(query, key, k, repeats)
        for way in WAYS:
            contrast = WAYS[way](unit(2, d, device, 3), TEMPERATURE)
            row = {"device": card, "n": n, "k": k, "d": d, "way": contrast.name}
            row["by"] = "torch" if way == "original" else implementation(device, contrast.stored, d)
            seconds, taken_by = times[way].seconds, times[way].taken_by
            row |= {"median_ms": round(1e3 * statistics.median(seconds), 3), "repeats": repeats, "taken_by": taken_by}
            row |= {"lowest_ms": round(1e3 * min(seconds), 3), "highest_ms": round(1e3 * max(seconds), 3)}
            row |= {"peak_mib": round(peak(way, n, k, d, device) / 2**20, 1), **errors[way]}
            rows.append(row)
            print(", ".join(f"{name} {value}" for name, value in row.items()), file=sys.stderr, flush=True)
    return rows


def error(way: str, query: torch.Tensor, key: torch.Tensor, size: int) -> dict[str, float]:
    """Largest differences of loss and gradient from the float64 reference; RuntimeError where it is not rounding."""
    contrast = WAYS[way](unit(size, query.shape[1], query.device, 3), TEMPERATURE)
    exact = query.double().requires_grad_()
    expected = sum_of_parts(exact, key, contrast.ring())
    loss, gradient = contrast.step(query, key)
    assert exact.grad is not None
    loss_error = abs(loss.item() - expected)
    gradient_error = float((gradient - exact.grad).abs().max() / exact.grad.abs().max())
    written = float((contrast.ring()[: len(key)].double() - key.double()).abs().max())
    if loss_error > 1e-4 or gradient_error > 1e-3 or written > torch.finfo(contrast.stored).eps:
        raise RuntimeError(
            f"{contrast.name} is wrong for {(*key.shape, size)}: by {loss_error:.2g} in the loss, "
            f"{gradient_error:.2g} in the gradient, {written:.2g} in the queue; nothing was timed"
        )
    return {"loss_error": float(f"{loss_error:.2g}"), "gradient_error": float(f"{gradient_error:.2g}")}


def sum_of_parts(query: torch.Tensor, key: torch.Tensor, ring: torch.Tensor) -> float:
    """Mean loss of the reference, sixteen queries at a time because float64 logits are large; sets query.grad."""
    total, ring = 0.0, ring.double()
    for part, positive in zip(query.split(16), key.double().split(16), strict=True):
        loss = reference.infonce(part, positive, ring, TEMPERATURE)[0].sum() / len(query)
        loss.backward()
        total += loss.item()
    return total


def times_of(query: torch.Tensor, key: torch.Tensor, size: int, repeats: int) -> dict[str, Times]:
    """Seconds per step of each formulation, measured in turn."""
    contrasts = {way: WAYS[way](unit(size, query.shape[1], query.device, 3), TEMPERATURE) for way in WAYS}
    steps = {way: partial(contrast.step, query, key) for way, contrast in contrasts.items()}
    return timed(steps, query.device, repeats, waiting=("original",))  # for its pointer, which is part of its cost


def peak(way: str, n: int, k: int, d: int, device: torch.device) -> int:
    """Peak memory of two steps in bytes, beyond queries, keys and queue."""
    if device.type == "cuda":
        query, key, contrast = _inputs(way, n, k, d, device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        for _ in range(2):
            contrast.step(query, key)
        return torch.cuda.max_memory_allocated(device) - before
    return in_process("kernels", "host_peak", {"way": way, "n": n, "k": k, "d": d})


def host_peak(way: str, n: int, k: int, d: int) -> int:
    """The same on a CPU; runs in a separate process, because VmHWM covers all that a process did."""
    small = _inputs(way, 2, 2, 2, torch.device("cpu"))
    small[2].step(*small[:2])  # loads code and starts threads
    query, key, contrast = _inputs(way, n, k, d, torch.device("cpu"))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
    before = memory("VmRSS")
    for _ in range(2):
        contrast.step(query, key)
    return memory("VmHWM") - before


def _inputs(way: str, n: int, k: int, d: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, Contrast]:
    contrast = WAYS[way](unit(k, d, device, 3), TEMPERATURE)
    return unit(n, d, device, 1), unit(n, d, device, 2), contrast


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table, with the speed relative to the original at the same shape."""
    lines = [
        "Loss, gradient and queue of one step; peak memory beyond queries, keys and queue.",
        "",
        "| N | K | D | formulation | by | ms | lowest to highest | times as fast | peak MiB |",
        "| --: | --: | --: | --- | --- | --: | --- | --: | --: |",
    ]
    for row in rows:
        shape = row["n"], row["k"], row["d"]
        base = next(r for r in rows if (r["n"], r["k"], r["d"]) == shape and r["way"] == "original")
        ratio = f"{base['median_ms'] / row['median_ms']:.2f}"
        by = row["by"] if row["device"] == "cpu" else f"{row['by']}, {row['device']}"
        spread = f"{row['lowest_ms']:,.2f} to {row['highest_ms']:,.2f}"
        lines.append(
            f"| {' | '.join(f'{x:,}' for x in shape)} | {row['way']} | {by} | {row['median_ms']:,.2f} | {spread} "
            f"| {ratio} | {row['peak_mib']:,.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    script(Args, run)
