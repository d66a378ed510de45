"""What has to hold on the card besides speed: tests, exact resuming, damaged images, and memory that does not grow."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from _gpu.suite import Row, Rows, Suite
from _memory import memory
from fastmoco.checkpoints import checkpoint
from fastmoco.trainer.loop import train
from pipelines import PipelineOptions, ViewSpec, build, draw
from pipelines._threads import worker_pool
from pipelines.contract import BadImages
from pipelines.torch_cpu import TorchBackend
from shards import ShardSet
from soak import growth, make_uneven_set, read_every

ROOT = Path(__file__).resolve().parents[2]


def tests(suite: Suite) -> Rows:
    """The tests that need a GPU; without one pytest only collects them."""

    def run() -> Row:
        line = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(ROOT / "tests")]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stdout[-3000:] + done.stderr[-500:])
        return {"pytest": done.stdout.strip().splitlines()[-1]}

    yield {"tests": "gpu"}, run


def resume(suite: Suite) -> Rows:
    """Tensors that differ between a run of eight steps and one that resumed after four."""
    for deterministic in (False, True):
        yield {"deterministic": deterministic}, partial(_differing, suite, deterministic)


def _differing(suite: Suite, deterministic: bool) -> Row:
    with TemporaryDirectory(prefix="gpu_suite-resume-") as folder:
        out = Path(folder)
        config = suite.config(
            shards=Path(suite.shards), out=out / "whole", steps=8, checkpoint_every=4, log_every=8,
            deterministic=deterministic, batch_size=min(suite.batch_size, 128),
        )  # fmt: skip
        train(config)
        half = out / "whole" / "checkpoints" / "step-00000004.pt"
        train(replace(config, out=out / "resumed", resume=str(half)))
        states = [checkpoint.load(out / name / "checkpoints" / "step-00000008.pt") for name in ("whole", "resumed")]
    whole, resumed = map(_tensors, states)
    differing = [name for name, tensor in whole.items() if not torch.equal(tensor, resumed[name])]
    if whole.keys() != resumed.keys() or (deterministic and differing):
        raise RuntimeError(
            f"{len(differing)} of {len(whole)} tensors differ after resuming, {differing[:3]} among them"
        )
    return {"tensors": len(whole), "differing": len(differing)}


def _tensors(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a state by their place in it."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    return {key: tensor for part, inner in items for key, tensor in _tensors(inner, f"{name}/{part}").items()}


def damaged(suite: Suite) -> Rows:
    """Damaged JPEGs, one in a batch of sound ones: DALI has to name the same image as the torch backend does."""
    count = 16 if suite.tiny else 64
    with ShardSet(suite.shards) as shards:
        images = [shards.read(number) for number in range(count)]
        sizes = shards.sizes(np.arange(count))
    for name, data in _damages(images[0]).items():
        yield {"image": name}, partial(_named, suite, [*images[1:], data], np.concatenate([sizes[1:], sizes[:1]]))


def _damages(image: bytes) -> dict[str, bytes]:
    at = image.index(b"\xff\xda")  # start of scan: the pixels follow
    return {
        "cut in half": image[: len(image) // 2],
        "cut in the header": image[: at // 2],
        "without its last bytes": image[:-64],
        "zeros in the pixels": image[: at + 64] + bytes(512) + image[at + 576 :],
        "no quantisation table": image.replace(b"\xff\xdb", b"\xff\xfe"),
        "empty": b"",
        "text": b"not a picture at all" * 16,
    }


def _named(suite: Suite, images: list[bytes], sizes: np.ndarray) -> Row:
    from pipelines.dali import DaliBackend  # here, because DALI may be missing

    spec, pool = ViewSpec.moco_v2(suite.image_size), worker_pool(suite.cores, "gpu_suite")
    query, key = (draw(spec, seed=0, epoch=0, ids=np.arange(len(images)), sizes=sizes, view=view) for view in (0, 1))
    backends = {
        "torch": TorchBackend(spec, pool, pinned=False),
        "dali": DaliBackend(spec, len(images), suite.on, pool, suite.cores),
    }
    found: Row = {}
    for name, backend in backends.items():
        try:
            backend.views(images, sizes, (query, key))
            found[name] = "accepted"
        except BadImages as error:
            found[name] = f"{sorted(error.causes)} of {len(images)} rejected: {'; '.join(error.causes.values())}"[:160]
        finally:
            backend.close()
    pool.shutdown()
    wrong = [
        name for name in backends if found[name] != "accepted" and not found[name].startswith(f"[{len(images) - 1}] ")
    ]
    if wrong:
        raise RuntimeError(f"{found}: a sound image was rejected")
    return found


def memory_over_batches(suite: Suite) -> Rows:
    """Memory of the process and of the card over batches with some images of twelve megapixels among them."""
    batches, readings = (30, 10) if suite.tiny else (300, 60)

    def read() -> tuple[float, float]:
        free, total = torch.cuda.mem_get_info() if suite.device == "cuda" else (0, 0)
        return memory("VmRSS") / 1e6, (total - free) / 1e6

    def watch() -> Row:
        sizes = {"per_class": 8, "large": 2} if suite.tiny else {"per_class": 64, "large": 6}
        with TemporaryDirectory(prefix="gpu_suite-memory-") as folder:
            made = make_uneven_set(Path(folder), **sizes, size=(96, 128), large_size=(3000, 4000))
            options, spec = PipelineOptions(pipeline="dali", threads=suite.cores), ViewSpec.moco_v2(suite.image_size)
            with ShardSet(made) as shards:
                batch = min(suite.batch_size, len(shards) // 2)
                with build(shards, spec, options, global_batch=batch, device=suite.on) as pipeline:
                    host, card = zip(*read_every(pipeline, batches, batches // readings, read), strict=True)
        row: Row = {"batches": batches, "batch_size": batch}
        for name, values in (("host", host), ("card", card)):
            later = np.array(values[len(values) // 2 :])
            slope, error = growth(later, batches / readings / 100)
            row |= {
                f"{name}_mb": round(values[-1]),
                f"{name}_mb_per_100_batches": round(slope, 2),
                f"{name}_error": round(error, 2),
            }
        return row

    yield {"images": "small ones, some of 4,000 x 3,000"}, watch
