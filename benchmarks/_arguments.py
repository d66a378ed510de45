"""The command line of `imgs_per_sec.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from _charts import require
from _command import BenchmarkError
from fastmoco.flags import at_least, check_sizes, flag, positive, share
from pipelines.options import PipelineOptions


@dataclass(frozen=True)
class Args:
    """Measure images per second of the loader, of the model, and of training end to end."""

    shards: str | None = None
    """Shard set to read, a folder or an fsspec URL; default: ./shards if it is one, else a small generated set."""
    arch: str | None = None
    """Encoder; default: resnet50 on a GPU, resnet18 on a CPU."""
    batch_size: int | None = None
    """Images per step and rank; default: 256 on a GPU, 32 on a CPU."""
    image_size: int | None = None
    """Side of a view in pixels; default: 224 on a GPU, 64 on a CPU."""
    pipeline: Literal["auto", "dali", "torch"] = "auto"
    """Data backend."""
    threads: int | None = None
    """Decoding threads; default: depends on the backend."""
    decoder_load: float = PipelineOptions.decoder_load
    """Share of a batch, 0 to 1, that DALI decodes on the GPU's hardware JPEG decoder, if the GPU has one."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Precision of the forward pass."""
    compile: bool = False
    """Compile the encoders by torch.compile."""
    seconds: float = 4.0
    """Minimum duration of one measurement."""
    steps: int | None = None
    """Steps of one measurement; overrides --seconds."""
    repeats: int = 3
    """Measurements of each rate, or of each loader."""
    json: Path | None = None
    """File for the figures; with --peers, a table (.md) and a bar chart (.svg) are written beside it."""
    peers: bool = False
    """Compare the loader with others on the same images; default: batches of 64, on a GPU 256, at 224 pixels."""
    device: Literal["cpu", "cuda"] | None = None
    """With --peers: where the batches are delivered; default: cuda if there is a GPU, else cpu."""
    only: tuple[str, ...] = ()
    """With --peers: names of the loaders to measure; default: all."""
    images: int = 4096
    """With --peers: maximum number of images to use."""


def check(args: Args) -> None:
    """Raise BenchmarkError for a number out of its range, a flag without effect, or a chart that cannot be drawn."""
    at_least(1, args, "repeats", "steps", "images", "batch_size", "image_size", "threads")
    positive(args, "seconds")
    check_sizes(args)
    share(args, "decoder_load")
    ignored = (
        ("arch", "pipeline", "decoder_load", "precision", "compile", "steps")
        if args.peers
        else ("device", "only", "images")
    )
    for name in ignored:
        if getattr(args, name) != getattr(Args, name):
            remedy = (
                "with --peers, which measures loaders alone: leave it out" if args.peers else "without --peers: add it"
            )
            raise BenchmarkError(f"{flag(name)} has no effect {remedy}")
    if args.peers and args.json:
        require()
