"""Features of images by a trained encoder."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from fastmoco.api.encoders import LoadedEncoder, load_encoder
from fastmoco.api.sources import as_set
from fastmoco.config import ConfigError
from fastmoco.features.parts import read_rows
from fastmoco.probes.features import Extractor
from fastmoco.ranks.world import World
from pipelines.transform import CentreTransform
from shards import ShardSet
from shards.errors import PackError
from shards.images.encode import Rejected, encode
from shards.packing.sources.items import Item, Items, Pixels
from shards.pool import cores


@dataclass(frozen=True)
class Embeddings:
    """Features of N images, row by row.

    Attributes:
        features: float32 [N, D], pooled and not normalised, in host memory.
        ids: int64 [N]: sample ids of a shard set, positions in a list or data set.
        names: Of a folder the paths below it, of a set what `ShardSet.names` gives, of a list the paths or what the
            items give as `name`; empty for images without a name.
        labels: int64 [N], -1 for none.
        classes: Names of the classes by label; empty without labels.
    """

    features: np.ndarray
    ids: np.ndarray
    names: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.features)


def load_embeddings(place: str | os.PathLike[str]) -> Embeddings:
    """Features that `fastmoco embed` has written, in memory.

    Args:
        place: Folder or URL.

    Raises:
        UserError: They are missing, unfinished or damaged.
    """
    parts = list(read_rows(os.fspath(place)))
    columns = zip(*((rows.features, rows.ids, rows.labels) for _, rows in parts), strict=True)
    features, ids, labels = (np.concatenate(column) for column in columns)
    names = tuple(name for _, rows in parts for name in rows.names)
    return Embeddings(features, ids, names, labels, tuple(parts[0][0]["classes"]))


def embed(
    images: Any,
    encoder: str | os.PathLike[str] | LoadedEncoder | tuple[nn.Module, CentreTransform],
    *,
    batch_size: int = 128,
    precision: str = "fp32",
    device: torch.device | str | None = None,
) -> Embeddings:
    """Features of all images of a folder, a shard set, or a list.

    A folder is packed first, into the cache, and its rows are sorted by name; the rows of a set are in the order of
    the ids. Images that cannot be read are left out of a folder, as in packing, and raise in a list.

    Args:
        images: Folder of images, folder or URL of a shard set, or a data set or iterable as of `shards.pack`.
        encoder: What `fastmoco.load_encoder` takes or returns.
        batch_size: Images per batch.
        precision: Precision of the encoder's forward pass: fp32, bf16, fp16 or auto.
        device: Where the encoder runs; None for the GPU, if there is one.

    Raises:
        UserError: The images or the encoder cannot be read.
    """
    if isinstance(encoder, str | os.PathLike):
        encoder = load_encoder(encoder)
    if precision not in ("fp32", "bf16", "fp16", "auto"):
        raise ConfigError(f"precision is {precision!r}; it must be fp32, bf16, fp16 or auto")
    net, transform = encoder
    place = torch.device(device) if device is not None else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # moved for the time of the call: the encoder is the caller's
    before = next(net.parameters()).device
    extractor = Extractor(
        net.to(place), "", transform.resize, transform.image_size, World(0, 1, place), batch_size, precision
    )
    try:
        if isinstance(images, str | os.PathLike):
            return _of_set(images, extractor)
        return _of_items(Items(images, shuffle=False), extractor, transform)
    finally:
        net.to(before)


def _of_set(images: str | os.PathLike[str], extractor: Extractor) -> Embeddings:
    source = as_set(images)
    with ShardSet(source.place) as shard_set:
        ids = np.arange(len(shard_set))
        names = shard_set.names(ids)
        if source.packed is not None:
            ids = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)
            names = [names[sample] for sample in ids.tolist()]
        bank = extractor.bank(shard_set, ids)
        good = bank.own(extractor.here)  # without bad images, which the log names
        features, names = bank.rows(good).numpy(), tuple(names[place] for place in good)
        return Embeddings(features, ids[good], names, bank.labels_N.numpy()[good], tuple(shard_set.classes))


def _of_items(items: Items, extractor: Extractor, transform: CentreTransform) -> Embeddings:
    names: list[str] = []
    labels: list[int] = []
    features: list[np.ndarray] = []
    net, device = extractor.encoder, extractor.here.device
    training = net.training
    net.eval()
    try:
        waiting: Iterator[Item] = iter(items)
        with ThreadPoolExecutor(cores()) as pool:
            while batch := list(islice(waiting, extractor.batch_size)):
                names += [item.name for item in batch]
                labels += [item.label for item in batch]
                views = torch.stack(list(pool.map(partial(_view, transform), batch)))
                views = views.to(device, memory_format=torch.channels_last)
                features.append(extractor.encode_finite(views))
    finally:
        net.train(training)
    if not features:
        raise PackError("the iterable has no image; one that can be read once may have been read before")
    ids = np.arange(len(names), dtype=np.int64)
    return Embeddings(np.concatenate(features), ids, tuple(names), np.array(labels, dtype=np.int64), items.classes)


def _view(transform: CentreTransform, item: Item) -> torch.Tensor:
    """The tensor of an item: of a file as it would be packed, so that a list and its folder have equal features."""
    content = item.content
    try:
        if isinstance(content, Rejected):
            raise content
        return transform(
            content.image() if isinstance(content, Pixels) else Image.open(io.BytesIO(encode(content).jpeg))
        )
    except Rejected as rejected:
        raise PackError(f"{item.source} cannot be used: {rejected}") from None
