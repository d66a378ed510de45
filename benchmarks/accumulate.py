"""Memory and rate of a training step in micro-batches (`--accumulate`).

    python benchmarks/accumulate.py [--parts 1 2 4 8] [--repeats 3] [--json OUT]
    python benchmarks/accumulate.py --recipe moco-v3-r50 --parts 1 16 32 64 --counted [--json OUT]
    python benchmarks/accumulate.py --recomputed resnet50 timm:vit_small_patch16_224 timm:convnext_tiny [--json OUT]

With --recomputed: the recipe's step with each encoder, without and with `--checkpoint-activations`, counted. Else two
kinds of rows. `counted`: the recipe's encoder and batch in bf16, on fake tensors, as `fastmoco train --dry-run` counts
it. `measured`: steps of a smaller encoder on this machine's CPU, each number of micro-batches in a process of its own
and all in turn: the rate, and the peak of the memory above what the process held before the steps (the kernel's record,
Linux only).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from _command import script
from _memory import memory
from _processes import in_process
from _results import show, write_json
from fastmoco.flags import at_least
from fastmoco.recipes import moco_v2, recipe

SAMPLES = 1000
"""Samples of the set; only the memory bank depends on it."""


@dataclass(frozen=True)
class Args:
    """Memory and rate of a training step in micro-batches."""

    parts: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of micro-batches."""
    recipe: str = "moco-v2"
    """Recipe of the counted rows."""
    counted: bool = False
    """Only count."""
    recomputed: tuple[str, ...] = ()
    """Encoders to count without and with --checkpoint-activations, instead of all else."""
    arch: str = "resnet18"
    """Encoder of the measured rows."""
    batch_size: int = 64
    """Images per step of the measured rows."""
    image_size: int = 128
    """Side of a view of the measured rows in pixels."""
    repeats: int = 3
    """Processes for each number of micro-batches."""
    json: Path | None = None
    """File for the rows and the environment."""


def run(args: Args) -> None:
    """Count, measure, print a line for each number of micro-batches, and write the rows."""
    at_least(1, args, "batch_size", "image_size", "repeats")
    if args.recomputed:
        rows = _recomputed_rows(args)
    else:
        rows = [show({"kind": "counted", "accumulate": parts, **counted(args.recipe, parts)}) for parts in args.parts]
        rows += [] if args.counted else _measured_rows(args)
    if args.json:
        from _environment import environment

        write_json(args.json, {"environment": environment(), "repeats": args.repeats, "rows": rows})


def _recomputed_rows(args: Args) -> list[dict[str, Any]]:
    rows = []
    for arch in args.recomputed:
        for on in (False, True):
            needed = counted(args.recipe, 1, arch=arch, checkpoint_activations=on)
            rows.append(show({"kind": "recomputed", "checkpoint_activations": on, **needed}))
    return rows


def _measured_rows(args: Args) -> list[dict[str, Any]]:
    rows = []
    sizes = {"arch": args.arch, "batch_size": args.batch_size, "image_size": args.image_size}
    turns = [
        {parts: in_process("accumulate", "measured", {"parts": parts, **sizes}) for parts in args.parts}
        for _ in range(args.repeats)
    ]
    for parts in args.parts:
        row: dict[str, Any] = {"kind": "measured", "accumulate": parts, **sizes}
        for name in turns[0][parts]:
            row[name] = round(median(turn[parts][name] for turn in turns), 3)
        rows.append(show(row))
    return rows


def counted(name: str, parts: int, **changes: Any) -> dict[str, Any]:
    """Gigabytes of a step of a recipe in bf16, with changed settings."""
    import torch

    from fastmoco.doctor.step_memory import step_memory

    config = recipe(name, accumulate=parts, **changes)
    needed = step_memory(config, config.batch_size, SAMPLES, torch.bfloat16)
    figures = {"activations_gb": needed.activations, "views_gb": needed.views, "total_gb": needed.total}
    sizes = {
        "recipe": name, "arch": config.arch, "batch_size": config.batch_size, "image_size": config.image_size,
        "precision": "bf16",
    }  # fmt: skip
    return {**sizes, **{name: round(size / 1e9, 3) for name, size in figures.items()}}


def measured(parts: int, arch: str, batch_size: int, image_size: int) -> dict[str, float]:
    """Peak above what the process held before, in gigabytes, and images per second of the second step."""
    import torch

    from fastmoco.trainer.step import TrainStep
    from pipelines import TwoViews

    config = replace(
        moco_v2(), arch=arch, batch_size=batch_size, image_size=image_size, accumulate=parts, precision="fp32",
        queue_size=4096,
    )  # fmt: skip
    step = TrainStep(config, torch.device("cpu"), 100)
    images = torch.randn(2, batch_size, 3, image_size, image_size)
    query, key = (view.contiguous(memory_format=torch.channels_last) for view in images)
    batch = TwoViews(query, key, torch.arange(batch_size))
    before = memory("VmRSS")
    step(batch, 0)
    began = time.perf_counter()
    step(batch, 1)
    rate = batch_size / (time.perf_counter() - began)
    return {"peak_gb": (memory("VmHWM") - before) / 1e9, "imgs_per_sec": rate}


if __name__ == "__main__":
    script(Args, run)
