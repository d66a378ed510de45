"""Nearest neighbours of some images in an encoder's features, with thumbnails."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn
from torch.nn import functional as F

from fastmoco.channels import check_images
from fastmoco.config import Config
from fastmoco.flags import ConfigError, require
from fastmoco.layouts.encoders import read_encoder
from fastmoco.probes.features import Bank, Extractor
from fastmoco.probes.knn import TILE, nearest
from fastmoco.ranks.world import World, world
from fastmoco.report import rows
from fastmoco.report.rows import Row, Thumbnail
from fastmoco.report.thumbnails import opened
from fastmoco.scalings import scaling_for
from fastmoco.views import resize_for
from shards import ShardSet
from shards.format.manifest import parse_json
from shards.format.scaling import Scaling
from shards.storage.files import whole_file

log = logging.getLogger(__name__)

QUERIES, NEIGHBOURS = 8, 8
SIDE = 72
"""Width and height of a thumbnail in pixels."""
AMONG = 2000
"""Training images among which `compute` searches: seconds with a small encoder on a CPU."""
_RIGHT, _WRONG, _EDGE = "#2f9e44", "#d6336c", 4


@dataclass(frozen=True)
class Samples:
    """Samples of a set with their features.

    Attributes:
        shard_set: the set.
        ids: int64[N], their ids in it.
        bank: their features and labels.
    """

    shard_set: ShardSet
    ids: np.ndarray
    bank: Bank

    def thumbnail(self, place: int) -> Thumbnail:
        """Of the sample at a place among the N."""
        sample = int(self.ids[place])
        label = int(self.shard_set.labels(np.array([sample]))[0])
        name = self.shard_set.classes[label] if label >= 0 else f"image {sample}"
        return Thumbnail(_centre(opened(self.shard_set, sample)), name)


def features(
    encoder: nn.Module,
    shard_set: ShardSet,
    device: torch.device,
    image_size: int,
    ids: np.ndarray | None = None,
    scaling: Scaling | None = None,
) -> Samples:
    """Features of the samples `ids` of a set, all by default, in this process alone; the encoder's mode is restored.

    With 16 bits its values are scaled by `scaling`; None: as of `Extractor`.
    """
    ids = np.arange(len(shard_set)) if ids is None else ids
    # a world of one: other ranks do not take part. No digest: nothing is cached
    extractor = Extractor(encoder, "", resize_for(image_size), image_size, World(0, 1, device), scaling=scaling)
    return Samples(shard_set, ids, extractor.bank(shard_set, ids))


def pick_queries(labels: np.ndarray, count: int) -> np.ndarray:
    """Places of `count` samples: the first of evenly spaced classes, so the choice does not depend on results.

    Args:
        labels: int64[N]; if all are -1, the places are evenly spaced over the set.
        count: maximum number of queries.
    """
    classes, first = np.unique(labels, return_index=True)
    candidates = first if len(classes) > 1 else np.arange(len(labels))
    places = np.linspace(0, len(candidates) - 1, min(count, len(candidates))).round().astype(np.int64)
    return candidates[places]


def rows_of(queries: Samples, train: Samples, here: World | None = None) -> list[Row]:
    """Some queries with the most similar training samples; a query is not its own neighbour.

    With several ranks, those among this rank's share of both: its features are in memory.

    Args:
        queries: samples to choose queries from, with the training set's labels.
        train: samples to search.
        here: this rank; None for a process of its own.
    """
    here = here or World(0, 1, torch.device("cpu"))
    own = queries.bank.own(here)
    chosen = own[pick_queries(queries.bank.labels_N.numpy()[own], QUERIES)]
    places = train.bank.own(here)
    same_set = queries.shard_set.digest == train.shard_set.digest
    # their places in place of labels, which is what comes back of the nearest
    tiles = _tiles(train.bank, places)
    unit_QD = F.normalize(queries.bank.rows(chosen), dim=1)
    _, found = nearest(tiles, unit_QD, min(NEIGHBOURS + same_set, len(places)))
    made = []
    for query, near in zip(chosen.tolist(), found.tolist(), strict=True):
        others = [n for n in near if not same_set or train.ids[n] != queries.ids[query]][:NEIGHBOURS]
        label = queries.bank.labels_N[query]
        right = None if label < 0 else tuple((train.bank.labels_N[others] == label).tolist())
        made.append(Row(queries.thumbnail(query), tuple(map(train.thumbnail, others)), right))
    return made


def compute(run: Path) -> None:
    """Write RUN/neighbours.json and RUN/neighbours.png for a run's newest checkpoint.

    Raises:
        ConfigError: the run has no shard set, as with --stream.
        LayoutError, ShardSetError: its checkpoint or its sets cannot be read.
    """
    try:
        recorded = parse_json((run / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{run}/config.json cannot be read: {error}; leave out --neighbours") from error
    require(
        isinstance(recorded, dict) and "mechanism" in recorded,
        f"{run} is not a pretraining run; --neighbours needs one",
    )
    config = Config.from_dict(recorded)
    path = config.knn_train or (config.sets[0] if config.stream is None else None)
    if path is None:
        raise ConfigError(f"{run} was trained on --stream, whose images cannot be looked up; leave out --neighbours")
    weights = read_encoder(run)
    step = 0 if weights.checkpoint is None else weights.checkpoint["progress"]["step"]
    with ExitStack() as stack:
        here = stack.enter_context(world())
        encoder = weights.encoder().to(here.device)
        train_set = stack.enter_context(ShardSet(path))
        query_set = train_set if config.knn_val is None else stack.enter_context(ShardSet(config.knn_val))
        check_images(config.channels, f"the encoder {run}", train_set, query_set)
        ids = np.unique(np.linspace(0, len(train_set) - 1, min(AMONG, len(train_set))).round().astype(np.int64))
        scaling = scaling_for(encoder.image_scaling, train_set, query_set)
        train = features(encoder, train_set, here.device, config.image_size, ids, scaling)
        labels = query_set.labels(np.arange(len(query_set)))
        chosen_ids = pick_queries(labels, QUERIES)
        queries = features(encoder, query_set, here.device, config.image_size, chosen_ids, scaling)
        by_name = {name: label for label, name in enumerate(train_set.classes)}
        numbers = [by_name.get(query_set.classes[n], -1) if n >= 0 else -1 for n in queries.bank.labels_N.tolist()]
        queries = Samples(query_set, queries.ids, queries.bank.relabelled(np.array(numbers, np.int64)))
        save(run, step, rows_of(queries, train))


def save(run: Path, step: int, found: Sequence[Row]) -> Path:
    """Write rows to RUN/neighbours.json and draw them in RUN/neighbours.png; returns the picture's path."""
    rows.save(run, step, found)
    path = run / "neighbours.png"
    with whole_file(path) as file:
        _sheet(found).save(file, format="PNG")
    return path


def _sheet(found: Sequence[Row]) -> Image.Image:
    """The rows as one picture: the query, and its neighbours in frames."""
    cell = SIDE + 2 * _EDGE
    sheet = Image.new("RGB", ((1 + NEIGHBOURS) * cell + 8, cell * max(1, len(found))), "white")
    pen = ImageDraw.Draw(sheet)
    for line, row in enumerate(found):
        for column, thumbnail in enumerate((row.query, *row.neighbours)):
            left, top = column * cell + (8 if column else 0), line * cell
            if column and row.right is not None:
                colour = _RIGHT if row.right[column - 1] else _WRONG
                pen.rectangle((left, top, left + cell - 1, top + cell - 1), fill=colour)
            with Image.open(io.BytesIO(thumbnail.jpeg)) as image:
                sheet.paste(image, (left + _EDGE, top + _EDGE))
    return sheet


def _tiles(bank: Bank, places: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for part in np.array_split(places, -(-len(places) // TILE)):
        yield F.normalize(bank.rows(part), dim=1), torch.from_numpy(part)


def _centre(image: Image.Image) -> bytes:
    """A JPEG of an image's centre square; the image is closed."""
    with image:
        width, height = image.size
        edge = min(width, height)
        left, top = (width - edge) // 2, (height - edge) // 2
        square = image.convert("RGB").resize((SIDE, SIDE), box=(left, top, left + edge, top + edge))
    stream = io.BytesIO()
    square.save(stream, format="JPEG", quality=88)
    return stream.getvalue()
