"""Nearest neighbours of query images for display, and the kNN probe on the same features."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from fastmoco.distributed import World
from fastmoco.probes.features import Extractor
from fastmoco.probes.knn import knn_top1
from shards import ShardSet


@dataclass(frozen=True)
class Features:
    """Features of a whole set, in order of sample ids.

    Attributes:
        values_ND: float32 [N, D] of unit length.
        labels_N: int64 [N]; -1 for no label.
    """

    values_ND: torch.Tensor
    labels_N: torch.Tensor


@dataclass(frozen=True)
class Row:
    """One query and its nearest neighbours.

    Attributes:
        query: sample id in the query set.
        neighbours: sample ids in the training set, nearest first.
        right: whether each neighbour has the query's label; None without labels.
    """

    query: int
    neighbours: tuple[int, ...]
    right: tuple[bool, ...] | None


def features(encoder: nn.Module, shard_set: ShardSet, *, resize: int, crop: int, device: torch.device) -> Features:
    """Features of every image of a set, with the encoder in evaluation mode; its mode is restored."""
    ids = np.arange(len(shard_set))
    # a world of one: the demo is one process. No digest: nothing is cached
    bank = Extractor(encoder, "", resize, crop, World(0, 1, device)).bank(shard_set, ids)
    return Features(F.normalize(bank.rows(ids).to(device), dim=1), bank.labels_N.to(device))


def top1(train: Features, val: Features, k: int, temperature: float) -> float:
    """Top-1 of the validation set by kNN in percent, measured as by the monitor during training."""
    return knn_top1(train.values_ND, train.labels_N, val.values_ND, val.labels_N, k, temperature)


def pick_queries(labels: np.ndarray, count: int) -> np.ndarray:
    """Ids of `count` samples: the first of evenly spaced classes, so the choice does not depend on results.

    Args:
        labels: int64[N]; if all are -1, ids are evenly spaced over the set.
        count: maximum number of queries.
    """
    classes, first = np.unique(labels, return_index=True)
    # without labels the ids themselves are evenly spaced
    candidates = first if len(classes) > 1 else np.arange(len(labels))
    places = np.linspace(0, len(candidates) - 1, min(count, len(candidates))).round().astype(np.int64)
    return candidates[places]


def nearest(queries: np.ndarray, query_set: Features, train: Features, count: int, same_set: bool) -> list[Row]:
    """The nearest training samples of each query.

    Args:
        queries: ids in the query set.
        query_set: its features.
        train: the training set's features.
        count: neighbours per query.
        same_set: whether the queries are training samples, so that a query is not its own neighbour.
    """
    similarity = query_set.values_ND[queries] @ train.values_ND.T
    if same_set:
        similarity[torch.arange(len(queries)), torch.as_tensor(queries)] = -torch.inf
    places = similarity.topk(min(count, len(train.values_ND) - same_set), dim=1).indices
    rows = []
    for query, ids in zip(queries.tolist(), places, strict=True):
        label = query_set.labels_N[query]
        right = None if label < 0 else tuple((train.labels_N[ids] == label).tolist())
        rows.append(Row(query, tuple(ids.tolist()), right))
    return rows


def thumbnail(shard_set: ShardSet, sample_id: int, side: int = 72) -> bytes:
    """JPEG bytes of a sample's centre square, side x side pixels."""
    with Image.open(io.BytesIO(shard_set.read(sample_id))) as image:
        width, height = image.size
        edge = min(width, height)
        left, top = (width - edge) // 2, (height - edge) // 2
        square = image.convert("RGB").resize((side, side), box=(left, top, left + edge, top + edge))
    stream = io.BytesIO()
    square.save(stream, format="JPEG", quality=88)
    return stream.getvalue()
