"""Features of a set in files: what `fastmoco embed` and `fastmoco.embed(..., out=...)` do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastmoco.channels import check_images
from fastmoco.features.index import build, faiss
from fastmoco.features.writing import Job, write_features
from fastmoco.probes.encoders import digest_of
from fastmoco.probes.features import Extractor
from fastmoco.ranks.encoders import agree_on_encoder
from fastmoco.ranks.world import World, world
from pipelines import PipelineOptions
from pipelines.transform import CentreTransform
from shards import ShardSet
from shards.storage.places import is_url
from shards.storage.store import open_store

_TIMEOUT = timedelta(days=1)
"""How long a rank that has done its parts waits for the others, which may be slower; torchrun ends it if one fails."""


@dataclass(frozen=True)
class Output:
    """The files.

    Attributes:
        place: folder or URL.
        kind: `npy` or `parquet`.
        dtype: `float32` or `float16`.
        part_size: images of a part.
        index: whether to write an index for searching, too (the extra `faiss`).
    """

    place: str
    kind: str
    dtype: str
    part_size: int
    index: bool = False


def write(
    place: str | Path,
    encoder: tuple[nn.Module, CentreTransform],
    output: Output,
    origin: Mapping[str, Any],
    *,
    batch_size: int,
    precision: str,
    reading: PipelineOptions | None = None,
    device: torch.device | str | None = None,
) -> dict[str, Any] | None:
    """Write features of all images of a set, or the rest of them. Under torchrun all ranks call it, and share the work.

    Args:
        place: of the set.
        encoder: the encoder, and the size and crop of its images.
        output: the files.
        origin: what embedding.json says of the encoder, so that `fastmoco similar` finds it again.
        batch_size: images of a batch.
        precision: of the encoder.
        reading: how images are read; None for the defaults.
        device: of the encoder; None for that of this rank.

    Returns:
        What embedding.json holds, on rank 0; None on the others.

    Raises:
        UserError: the set or the output cannot be used.
    """
    if output.index:
        faiss()
    net, transform = encoder
    digest = digest_of(net)
    with world(_TIMEOUT) as here, ShardSet(place) as shard_set, open_store(output.place) as store:
        agree_on_encoder(here, origin["checkpoint"], digest)
        on = torch.device(device or here.device)
        check_images(len(transform.mean), f"the encoder {origin['checkpoint'] or ''}".rstrip(), shard_set)
        extractor = Extractor(
            net.to(on), digest, transform.resize, transform.image_size, World(0, 1, on), batch_size, precision, reading,
            mean=transform.mean, std=transform.std, scaling=transform.scaling,
        )  # fmt: skip
        if here.is_main:
            extractor.log_scaling(shard_set)
        # whole, as the checkpoint: `fastmoco map` may be run in another folder
        about = {**origin, "place": str(place) if is_url(place) else os.path.abspath(place)}
        job = Job(shard_set, extractor, store, output.kind, output.dtype, output.part_size, here, about)
        written = write_features(job) or None
    if output.index and written:
        build(output.place, written)
    return written
