"""The backend that training would choose, and its rate on generated images."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

from fastmoco.doctor.findings import Finding

SIDE = 224  # pixels of a view, as in training on ImageNet
IMAGES, BATCH = 64, 32
HEIGHT, WIDTH = 375, 500
"""Pixels of the generated images: the most frequent size in ImageNet."""
SECONDS = 2.0


def loading() -> tuple[Finding, float | None]:
    """The backend with its reason, and its measured rate in images a second; None where it fails."""
    import torch

    from fastmoco.ranks.endings import of_user
    from pipelines.choice import choose, default_threads
    from shards.errors import UserError

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backend, reason = choose("auto", device)
    try:
        with tempfile.TemporaryDirectory(prefix="fastmoco-doctor-") as folder:
            name, rate = measure(Path(folder), device)
    except (OSError, RuntimeError, UserError, subprocess.SubprocessError) as error:
        meant = of_user(error, device)
        text = f"{backend} ({reason}) fails: {' '.join(str(meant).split())[:300]}"
        if isinstance(meant, UserError):
            return Finding("data", text, "stop", "do as this message says"), None
        other = ", or give fastmoco train --pipeline torch" if backend == "dali" else ""
        return Finding("data", text, "stop", f"mend the lines above{other}"), None
    views = f"decoding and two views of {SIDE} pixels from generated images of {WIDTH} x {HEIGHT}"
    text = f"{name}, {rate:,.0f} images/s on {default_threads(device)} threads ({views}); chosen because {reason}"
    return Finding("data", text), rate


def measure(folder: Path, device: object) -> tuple[str, float]:
    """Name of the backend and images a second, of a small generated set that is read from memory.

    Args:
        folder: An empty folder for the set.
        device: A torch.device, where the views go.
    """
    import torch

    from fastmoco.demo.made import make_images
    from pipelines import ViewSpec, build
    from shards import PackOptions, ShardSet, pack

    assert isinstance(device, torch.device)
    made = make_images(folder / "images", classes=4, per_class=IMAGES // 4, size=(HEIGHT, WIDTH), seed=0)
    pack(PackOptions(str(made), str(folder / "set"), workers=1), progress=False)
    with (
        ShardSet(folder / "set") as shards,
        build(shards, ViewSpec.moco_v2(SIDE), global_batch=BATCH, device=device) as pipeline,
    ):
        list(pipeline.epoch(0))  # compiled kernels are loaded, memory is allocated
        images, epoch, start = 0, 1, time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            for batch in pipeline.epoch(epoch):
                images += len(batch.ids)
            epoch += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return pipeline.backend, images / (time.perf_counter() - start)
