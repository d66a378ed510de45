"""Images per second of the training step and of the original formulation, measured in turn.

    python benchmarks/step.py [--arch resnet50] [--batch-size 32] [--queue-size 65536] [--json OUT]

Both start from the same weights and use the same views, which are in memory before the clock starts. The loss of the
first step must be the same. Then each takes a step in turn; the median counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from _command import BenchmarkError, script
from _environment import environment
from _original import OriginalStep
from _results import write_json
from fastmoco.config import Config
from fastmoco.flags import at_least
from fastmoco.recipes import moco_v2
from fastmoco.trainer.step import TrainStep
from pipelines import TwoViews


@dataclass(frozen=True)
class Args:
    """Compare the rate of the training step with the original formulation's."""

    arch: str = "resnet50"
    """Encoder."""
    batch_size: int = 32
    """Images per step; must divide --queue-size."""
    image_size: int = 224
    """Side of a view in pixels."""
    queue_size: int = 65_536
    """Keys in the queue."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Precision of fastmoco's step; the original uses float32."""
    compile: bool = False
    """Compile fastmoco's encoders by torch.compile."""
    steps: int = 5
    """Timed steps of each, after one untimed step."""
    device: str | None = None
    """cpu or cuda; default: cuda if there is a GPU, else cpu."""
    json: Path | None = None
    """File for the result and the environment."""


def run(args: Args) -> None:
    """Measure, print both rates, and write the result."""
    at_least(1, args, "steps", "batch_size", "image_size", "queue_size")
    if args.queue_size % args.batch_size:
        raise BenchmarkError(
            f"--queue-size {args.queue_size} is not a multiple of --batch-size {args.batch_size}, which the original "
            f"needs; use {-(-args.queue_size // args.batch_size) * args.batch_size}"
        )
    result = measure(args)
    ours, original = result["imgs_per_sec"]["fastmoco"], result["imgs_per_sec"]["original"]
    print(f"fastmoco {ours:.2f} images/s, original {original:.2f}: {ours / original:.2f} times")
    if args.json:
        write_json(args.json, result | {"environment": environment()})


def measure(args: Args) -> dict[str, Any]:
    """Times of both, with the settings."""
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    shape = {"arch": args.arch, "image_size": args.image_size, "queue_size": args.queue_size}
    config = replace(moco_v2(), batch_size=args.batch_size, precision=args.precision, compile=args.compile, **shape)
    ways, step = _ways(config, device)
    losses = {name: way() for name, way in ways.items()}
    # bf16 changes features by some hundredths, and the loss, a log of K exponentials, by about as much
    if abs(losses["fastmoco"] - losses["original"]) > (1e-3 if step.dtype is None else 0.1):
        raise RuntimeError(f"the first losses differ, {losses}: nothing was timed")
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.steps):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - started)
    rates = {name: args.batch_size / statistics.median(values) for name, values in times.items()}
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    settings = {"device": card, "batch_size": args.batch_size, "precision": str(step.dtype or torch.float32), **shape}
    return {**settings, "compile": args.compile, "imgs_per_sec": rates, "first_loss": losses, "seconds": times}


def _ways(config: Config, device: torch.device) -> tuple[dict[str, Callable[[], float]], TrainStep]:
    """A function for each that takes a step on the same views and returns its loss."""
    ours, original = TrainStep(config, device, total_steps=1000), OriginalStep(config, device)
    original.query_encoder.load_state_dict(ours.model.encoder.state_dict())
    original.key_encoder.load_state_dict(ours.model.encoder.state_dict())
    original.queue_DK = ours.model.dictionary.queue_KD.T.contiguous().clone()  # pyright: ignore
    views = torch.randn(2, config.batch_size, 3, config.image_size, config.image_size, device=device)
    query, key = (view.contiguous(memory_format=torch.channels_last) for view in views)
    batch = TwoViews(query, key, torch.arange(config.batch_size))
    numbers = iter(range(10**9))
    return {
        "fastmoco": lambda: float(ours(batch, next(numbers)).loss.detach()),
        "original": lambda: float(original(views[0], views[1])),
    }, ours


if __name__ == "__main__":
    script(Args, run)
