"""A trained encoder of timm as timm loads it: the largest difference of its features from those of the checkpoint.

    PYTHONPATH=benchmarks python -m _learning.exported CHECKPOINT SHARDS JSON THREADS

Exports by `fastmoco export --format timm`, loads the file strictly into what `timm.create_model` makes, and encodes the
same photographs, the first of the set, by both in float32.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image

from fastmoco.export import export
from fastmoco.layouts.encoders import read_encoder
from fastmoco.model.encoders import usual_size
from fastmoco.model.timm_encoders import arguments_of
from fastmoco.probes.encoders import transform_of
from shards import ShardSet
from shards.storage.files import write_whole

IMAGES = 128
"""Photographs that are compared, at most."""


def main() -> None:
    """Compare the encoder that the command line names, and write the result."""
    checkpoint, shards, answer, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    found = compared(Path(checkpoint), Path(shards))
    write_whole(Path(answer), (json.dumps(found) + "\n").encode())


def compared(checkpoint: Path, shards: Path) -> dict[str, Any]:
    """How far features [N, D] of the export are from those of the checkpoint.

    Args:
        checkpoint: a checkpoint of `fastmoco train` with an encoder of timm.
        shards: shard set whose first photographs are encoded.

    Returns:
        `images` N, `parameters` of the encoder, and the largest absolute values: `timm_difference` of the differences
        where timm's encoder is channels-last as the checkpoint's, `timm_difference_contiguous` as timm makes it, where
        other kernels round in another way, and `timm_largest` of the features.
    """
    weights = read_encoder(checkpoint)
    ours, side = weights.encoder(), weights.image_size or usual_size(weights.arch)
    name, arguments = arguments_of(weights.arch, side)
    theirs = timm.create_model(name, num_classes=0, **arguments).eval()
    with tempfile.TemporaryDirectory() as folder:
        export(weights, "timm", Path(folder) / "encoder.safetensors")
        timm.models.load_checkpoint(theirs, f"{folder}/encoder.safetensors", strict=True)
    transform = transform_of(ours, side)
    with ShardSet(shards) as photographs, torch.inference_mode():
        ids = range(min(IMAGES, len(photographs)))
        images = torch.stack([transform(Image.open(io.BytesIO(photographs.read(each)))) for each in ids])
        wanted, contiguous = ours(images), theirs(images)
        given = theirs.to(memory_format=torch.channels_last)(images)  # pyright: ignore[reportCallIssue]
    return {
        "images": len(images),
        "parameters": sum(parameter.numel() for parameter in ours.parameters()),
        "timm_difference": float((given - wanted).abs().max()),
        "timm_difference_contiguous": float((contiguous - wanted).abs().max()),
        "timm_largest": float(wanted.abs().max()),
    }


if __name__ == "__main__":
    main()
