"""All checks and measurements that need a GPU, in one command of under ten minutes without network access.

    python benchmarks/gpu_suite.py [--json OUT]

1. kernels: loss and queue are checked against float64, then timed against the original formulation (`kernels.py`);
2. step: training steps under torch.cuda.set_sync_debug_mode("error"), which fails if a step makes the host wait;
3. tests: pytest -m gpu;
4. images: images per second of loader, model and both (`imgs_per_sec.py`) on generated images, with DALI if installed.

If a part fails, its error is recorded and the other parts still run; the exit status is then 1.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from _command import BenchmarkError, script
from _environment import environment
from _processes import python
from _results import write_json
from fastmoco.flags import at_least, one_of
from fastmoco.recipes import moco_v2
from fastmoco.trainer.step import TrainStep
from fastmoco.trainer.window import Window
from kernels import SHAPES, measure
from pipelines import TwoViews

ROOT = Path(__file__).resolve().parent.parent
SECONDS = {"tests": 150, "images": 240}
"""Time limits of the parts that run in separate processes."""
PARTS = ("kernels", "step", "tests", "images")


@dataclass(frozen=True)
class Args:
    """Run the checks and measurements that need a GPU."""

    parts: tuple[str, ...] = PARTS
    """Parts to run."""
    arch: str = "resnet50"
    """Encoder of the parts step and images."""
    batch_size: int = 256
    """Images per step."""
    image_size: int = 224
    """Side of a view in pixels."""
    json: Path = ROOT / "benchmarks" / "results" / "gpu_suite.json"
    """File for the rows and the environment."""


def run(args: Args) -> int:
    """Run the parts one after another; the exit code is 1 if one failed."""
    one_of(PARTS, args, "parts")
    at_least(1, args, "batch_size", "image_size")
    if not torch.cuda.is_available():
        raise BenchmarkError(
            "torch finds no CUDA device, and this suite is for GPUs alone; run it on a machine with one (nvidia-smi "
            "lists it) and a CUDA build of torch, or run benchmarks/kernels.py, which works on a CPU"
        )
    device = torch.device("cuda")
    torch.cuda.set_device(0)
    works: dict[str, Callable[[Args, torch.device], Any]] = {
        "kernels": kernels, "step": step, "tests": tests, "images": images
    }  # fmt: skip
    result: dict[str, Any] = {
        "card": torch.cuda.get_device_name(device), "capability": list(torch.cuda.get_device_capability(device)),
        "environment": environment(),
    }  # fmt: skip
    for part in args.parts:
        result[part] = attempt(lambda work=works[part]: work(args, device))
        print(f"{part}: {json.dumps(result[part])[:2000]}", flush=True)
        write_json(args.json, result)  # after each part, in case the next one hangs
    failed = [part for part in args.parts if "error" in result[part]]
    if failed:
        print(f"gpu_suite: {', '.join(failed)} failed; see {args.json}", file=sys.stderr)
    return int(bool(failed))


def attempt(work: Callable[[], Any]) -> dict[str, Any]:
    """The result and duration of a part, or its error: a failed part must not stop the others."""
    begun = time.perf_counter()
    try:
        result = {"rows": work()}
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}"[-4000:]}
    return result | {"seconds": round(time.perf_counter() - begun, 1)}


def kernels(args: Args, device: torch.device) -> list[dict[str, Any]]:
    """Rows of `kernels.py`, each checked against float64."""
    return measure(SHAPES, device, repeats=5)


def step(args: Args, device: torch.device) -> list[dict[str, Any]]:
    """Training steps in which the host must not wait, with one and with eight BatchNorm groups."""
    return [{"bn_splits": splits, **_steps_without_waiting(args, device, splits)} for splits in (1, 8)]


def _steps_without_waiting(args: Args, device: torch.device, bn_splits: int) -> dict[str, Any]:
    config = replace(
        moco_v2(), arch=args.arch, batch_size=args.batch_size, image_size=args.image_size, bn_splits=bn_splits
    )
    train_step, window = TrainStep(config, device, 1000), Window(device)
    shape = (args.batch_size, 3, args.image_size, args.image_size)
    query, key = (
        torch.randn(shape, device=device, dtype=train_step.dtype or torch.float32).contiguous(
            memory_format=torch.channels_last
        )
        for _ in range(2)
    )
    batch = TwoViews(query, key, torch.arange(args.batch_size))
    count = 10
    for number in range(5):  # loads code and selects convolution algorithms
        train_step(batch, number)
    torch.cuda.synchronize(device)
    begun = time.perf_counter()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(5, 5 + count):
            contrast = train_step(batch, number)
            window.add(contrast, 0.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    launched = time.perf_counter() - begun
    torch.cuda.synchronize(device)
    seconds = time.perf_counter() - begun
    return {
        "arch": args.arch, "batch_size": args.batch_size, "image_size": args.image_size, "steps": count,
        "precision": str(train_step.dtype or torch.float32).removeprefix("torch."),
        "imgs_per_sec": round(count * args.batch_size / seconds, 1),
        "host_share": round(launched / seconds, 3),  # share of the time that the host spent launching work
        "peak_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2),
    }  # fmt: skip


def tests(args: Args, device: torch.device) -> dict[str, str]:
    """The last line of pytest -m gpu; raises RuntimeError if a test fails."""
    line = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(ROOT / "tests")]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS["tests"], check=False)
    if done.returncode:
        raise RuntimeError(done.stdout[-3000:] + done.stderr[-500:])
    return {"pytest": done.stdout.strip().splitlines()[-1]}


def images(args: Args, device: torch.device) -> list[dict[str, Any]]:
    """Results of `imgs_per_sec.py` with DALI, if installed, and with the torch backend."""
    backends = ["dali", "torch"] if importlib.util.find_spec("nvidia.dali") else ["torch"]
    rows = []
    with tempfile.TemporaryDirectory(prefix="gpu_suite-") as folder:
        for backend in backends:
            out = Path(folder) / f"{backend}.json"
            sizes = ("--arch", args.arch, "--batch-size", args.batch_size, "--image-size", args.image_size)
            what = ("--pipeline", backend, "--seconds", "3", "--repeats", "3", "--json", out)
            # in an empty folder, so that no ./shards is found
            options = {"cwd": Path(folder), "timeout": SECONDS["images"] / len(backends)}
            python(ROOT / "benchmarks" / "imgs_per_sec.py", *sizes, *what, **options)
            rows.append(json.loads(out.read_text(encoding="utf-8")))
    return rows


if __name__ == "__main__":
    script(Args, run)
