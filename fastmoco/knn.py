"""Weighted k-nearest-neighbour probe of frozen features.

python -m fastmoco.knn --checkpoint RUN/checkpoints/step-XXXXXXXX.pt --train SHARDS --val SHARDS
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import tyro

from fastmoco._fail import fail
from fastmoco.distributed import world
from fastmoco.layouts.files import LayoutError
from fastmoco.probes.encoders import open_encoder, unchanged
from fastmoco.probes.knn import Probe
from fastmoco.probes.sets import ProbeError, resize_for
from fastmoco.runs.checkpoint import CheckpointError
from fastmoco.runs.log import set_up_logging, write_atomically
from pipelines import PipelineError
from shards import ShardSetError


@dataclass(frozen=True)
class Args:
    """Classify one shard set by its nearest neighbours in another, in a trained encoder's features."""

    checkpoint: str
    """Checkpoint of a training run; a torchvision state dictionary (with --arch); or `untrained` (with --arch)."""
    train: str | Path
    """Labelled shard set that gives the neighbours."""
    val: str | Path
    """Labelled shard set to classify."""
    json: Path | None = None
    """File to write the result to."""
    k: tuple[int, ...] = (20,)
    """Neighbours that vote; several give a table."""
    temperature: tuple[float, ...] = (0.07,)
    """Temperature of the votes' weights; several give a table."""
    cache: Path | None = None
    """Folder in which features are kept for later calls; default: they are not kept."""
    arch: str | None = None
    """Architecture, where the checkpoint does not say it."""
    seed: int = 0
    """Seed of an untrained encoder."""
    image_size: int | None = None
    """Side of the centre crop; default: the training's view size, or 224."""
    resize: int | None = None
    """Short side before the crop; default: 8/7 of the crop, to the nearest multiple of 8."""
    batch_size: int = 128
    """Images at a time on a rank."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """That the encoder computes in."""
    threads: int | None = None
    """Decoding threads of a rank; default: one a core."""

    def __post_init__(self) -> None:
        """Check what can be checked without the data; raises ProbeError."""
        if not (self.k and self.temperature):
            raise ProbeError("--k and --temperature need a value each")
        if min(self.k) < 1:
            raise ProbeError(f"--k is {min(self.k)}; it must be at least 1")
        if not min(self.temperature) > 0:
            raise ProbeError(f"--temperature is {min(self.temperature)}; it must be above 0")
        if self.batch_size < 1:
            raise ProbeError(f"--batch-size is {self.batch_size}; it must be at least 1")


def main() -> None:
    """Entry of the command; what the user can mend ends in one line and exit code 2."""
    try:
        args = tyro.cli(Args, prog="fastmoco.knn")
        set_up_logging()
        run(args)
    except (CheckpointError, LayoutError, PipelineError, ProbeError, ShardSetError) as error:
        fail("fastmoco.knn", error, 2)


def run(args: Args) -> dict[str, Any]:
    """Probe, print, and write the result; returns it."""
    frozen = open_encoder(args.checkpoint, args.arch, args.seed)
    size = args.image_size or frozen.image_size
    resize = args.resize or resize_for(size)
    votes = list(product(args.k, args.temperature))
    with world() as here:
        probe = Probe(args.train, args.val, size, resize, here, args.batch_size, args.precision, args.threads)
        encoder = frozen.encoder.to(here.device)
        with unchanged(encoder):
            top1 = probe.table(probe.banks(encoder, frozen.digest, args.cache), votes)
        rows = [
            {"k": k, "temperature": temperature, "knn_top1": value}
            for (k, temperature), value in zip(votes, top1, strict=True)
        ]
        sets = probe.sets
        result = rows[0] | {
            "results": rows, "image_size": size, "resize": resize, "precision": args.precision,
            "checkpoint": args.checkpoint, "arch": frozen.arch, "encoder": frozen.digest,
            "train": len(sets.train_ids), "val": len(sets.val_ids), "classes": sets.classes,
        }  # fmt: skip
        if here.is_main:
            print(told(result))
            if args.json:
                write_atomically(args.json, json.dumps(result, indent=2) + "\n")
    return result


def told(result: dict[str, Any]) -> str:
    """The result for a person: one line, or a table of k by temperature."""
    rows, what = result["results"], f"({result['val']} images, {result['classes']} classes"
    if len(rows) == 1:
        return f"kNN top-1 {rows[0]['knn_top1']:.2f} % {what}, k {rows[0]['k']})"
    temperatures = list(dict.fromkeys(row["temperature"] for row in rows))
    lines = [f"kNN top-1 in % {what})", "      k" + "".join(f"{f'τ {t:g}':>9}" for t in temperatures)]
    for k in dict.fromkeys(row["k"] for row in rows):
        cells = [f"{row['knn_top1']:9.2f}" for row in rows if row["k"] == k]
        lines.append(f"{k:7d}" + "".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
