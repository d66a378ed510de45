"""Features of images by a trained encoder."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import nn

from fastmoco.api.encoders import LoadedEncoder, load_encoder
from fastmoco.api.sources import as_set
from fastmoco.api.writing import Output, write
from fastmoco.channels import check_images
from fastmoco.config import ConfigError
from fastmoco.features.parts import read_rows
from fastmoco.features.rows import arrow
from fastmoco.probes.features import Extractor
from fastmoco.ranks.world import World
from fastmoco.results import check_folder
from pipelines.errors import PipelineError
from pipelines.transform import CentreTransform
from shards import ShardSet
from shards.errors import PackError
from shards.images.deep import REMEDY, decoded, require
from shards.images.encode import Rejected, encode
from shards.images.options import EncodeOptions
from shards.packing.sources.items import Item, Items, Pixels
from shards.pool import cores
from shards.storage.places import is_url


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


@overload
def embed(
    images: Any,
    encoder: str | os.PathLike[str] | LoadedEncoder | tuple[nn.Module, CentreTransform],
    *,
    batch_size: int = 128,
    precision: str = "fp32",
    device: torch.device | str | None = None,
) -> Embeddings: ...


@overload
def embed(
    images: Any,
    encoder: str | os.PathLike[str] | LoadedEncoder | tuple[nn.Module, CentreTransform],
    *,
    batch_size: int = 128,
    precision: str = "fp32",
    device: torch.device | str | None = None,
    out: str | os.PathLike[str],
    format: str = "npy",
    dtype: str = "float32",
    part_size: int = 8192,
    index: bool = False,
) -> None: ...


def embed(
    images: Any,
    encoder: str | os.PathLike[str] | LoadedEncoder | tuple[nn.Module, CentreTransform],
    *,
    batch_size: int = 128,
    precision: str = "fp32",
    device: torch.device | str | None = None,
    out: str | os.PathLike[str] | None = None,
    format: str = "npy",
    dtype: str = "float32",
    part_size: int = 8192,
    index: bool = False,
) -> Embeddings | None:
    """Features of all images of a folder, a shard set, or a list.

    A folder is packed first, into the cache, and its rows are sorted by name; the rows of a set are in the order of
    the ids. Images that cannot be read are left out of a folder, as in packing, and raise in a list. For an encoder of
    16-bit images, those of a folder or list have 16 bits: PNGs and TIFFs, in a list uint16 arrays, too. Their values
    and those of a 16-bit set are scaled as the transform says; without a scaling, by the set's own percentiles, and a
    list is refused.

    With `out` the features are written there, as by `fastmoco embed`, part by part, in the order of the ids of the
    set; `fastmoco.load_embeddings` reads them. A call with the same arguments continues where one was interrupted.
    Under torchrun all ranks call it, each on its GPU, and share the parts. A list or data set is then packed into the
    cache, too.

    Args:
        images: Folder of images, folder or URL of a shard set, or a data set or iterable as of `shards.pack`.
        encoder: What `fastmoco.load_encoder` takes or returns.
        batch_size: Images per batch.
        precision: Precision of the encoder's forward pass: fp32, bf16, fp16 or auto.
        device: Where the encoder runs; None for the GPU, if there is one.
        out: Folder or URL for the features; None to return them. The other arguments are for files alone.
        format: Of the files: npy or parquet.
        dtype: Of the features in the files: float32 or float16.
        part_size: Images of a part of the files.
        index: Whether to write an index for `fastmoco similar`, too.

    Returns:
        The features; None if they are written.

    Raises:
        UserError: The images or the encoder cannot be read, or the output holds other features.
    """
    for name, value, known in (
        ("precision", precision, ("fp32", "bf16", "fp16", "auto")),
        ("format", format, ("npy", "parquet")),
        ("dtype", dtype, ("float32", "float16")),
    ):
        if value not in known:
            raise ConfigError(f"{name} is {value!r}; it must be {', '.join(known[:-1])} or {known[-1]}")
    if part_size < 1 or batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size} and part_size {part_size}; they must be at least 1")
    if format == "parquet":
        arrow()
    origin = {"checkpoint": None, "arch": None, "seed": 0}
    if isinstance(encoder, str | os.PathLike):
        origin["checkpoint"] = os.path.abspath(encoder)
        encoder = load_encoder(encoder)
    net, transform = encoder
    # moved, and in evaluation mode, for the time of the call: the encoder is the caller's
    before, training = next(net.parameters()).device, net.training
    try:
        if out is not None:
            output = Output(os.fspath(out), format, dtype, part_size, index)
            if not is_url(output.place):
                check_folder("out", Path(output.place))
            place = as_set(images, keep_16_bit=transform.bits == 16).place
            write(place, (net, transform), output, origin, batch_size=batch_size, precision=precision, device=device)
            return None
        here = World(0, 1, torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
        size = transform.image_size
        extractor = Extractor(
            net.to(here.device), "", transform.resize, size, here, batch_size, precision,
            mean=transform.mean, std=transform.std, scaling=transform.scaling,
        )  # fmt: skip
        if isinstance(images, str | os.PathLike):
            return _of_set(images, extractor, transform.bits)
        if transform.bits == 16:
            require("an encoder of 16-bit images")
        return _of_items(Items(images, shuffle=False, keep_16_bit=transform.bits == 16), extractor, transform)
    finally:
        net.to(before).train(training)


def _of_set(images: str | os.PathLike[str], extractor: Extractor, bits: int) -> Embeddings:
    source = as_set(images, keep_16_bit=bits == 16)
    with ShardSet(source.place) as shard_set:
        check_images(len(extractor.normalisation["mean"]), "the encoder", shard_set)
        extractor.log_scaling(shard_set)
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
    net.eval()
    waiting: Iterator[Item] = iter(items)
    with ThreadPoolExecutor(cores()) as pool:
        while batch := list(islice(waiting, extractor.batch_size)):
            names += [item.name for item in batch]
            labels += [item.label for item in batch]
            views = torch.stack(list(pool.map(partial(_view, transform), batch)))
            features.append(extractor.encode_finite(views.to(device, memory_format=torch.channels_last)))
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
        if transform.bits == 16:
            options = EncodeOptions(keep_16_bit=True)
            made = content.encoded(options) if isinstance(content, Pixels) else encode(content, options)
            return transform(decoded(made.data, made.width, made.height))
        return transform(
            content.image() if isinstance(content, Pixels) else Image.open(io.BytesIO(encode(content).data))
        )
    except (Rejected, PipelineError) as error:
        cause = str(error).replace(REMEDY, "the encoder was trained on images of 16 bits")
        raise PackError(f"{item.source} cannot be used: {cause}") from None
