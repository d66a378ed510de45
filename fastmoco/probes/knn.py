"""Weighted k-nearest-neighbour classification of frozen features (arXiv 1805.01978, section 3.4).

N: training samples, M: validation samples, D: feature dimension, W: ranks, C: classes.

The N x M matrix of similarities is never built, nor a row of it: training features pass by in tiles, and the k nearest
so far are kept for each validation sample. Whatever N and M, the device holds a block of validation features, a tile of
training features, and the product of the tile with a chunk of the block.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fastmoco.probes.features import Bank, Extractor, chosen
from fastmoco.probes.sets import LabelledSets, ProbeError
from fastmoco.probes.together import attempt
from fastmoco.ranks.exchange import all_gather_rows, all_gather_uneven
from fastmoco.ranks.world import World
from fastmoco.runs.progress import progress
from fastmoco.scalings import scaling_for
from pipelines import PipelineOptions
from shards.format.scaling import Scaling
from shards.progress import Bar
from shards.words import counted

log = logging.getLogger(__name__)

# with 2,048 dimensions a tile is 134 MB, a block 537 MB, a product 67 MB
TILE, BLOCK, CHUNK = 16_384, 65_536, 1024
"""Training rows of a tile; validation rows of a block, for which one pass is made; rows of a chunk."""
Tile = tuple[torch.Tensor, torch.Tensor]
"""Training features [n, D] of unit length and their labels int64 [n]."""


@torch.no_grad()
def nearest(tiles: Iterable[Tile], val_MD: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k training samples most similar to each validation sample.

    Args:
        tiles: all training samples.
        val_MD: float32 [M, D] of unit length.
        k: neighbours.

    Returns:
        Similarities float32 [M, k], the greatest first, and labels int64 [M, k]. Where there are fewer than k training
        samples, the last similarities are -inf.
    """
    similar_Mk = val_MD.new_full((len(val_MD), k), -torch.inf)
    # the label of neighbours that do not exist is never counted: exp(-inf) is 0
    labels_Mk = torch.zeros(len(val_MD), k, dtype=torch.int64, device=val_MD.device)
    for features, labels in tiles:
        chunks = (tensor.split(CHUNK) for tensor in (val_MD, similar_Mk, labels_Mk))
        for val, similar, named in zip(*chunks, strict=True):  # the latter two are views, written in place
            # first within the tile, so that what is merged and sorted is k columns, not the tile's 16,384
            product, index = (val @ features.T).topk(min(k, len(features)), dim=1)
            merged, chosen = torch.cat([similar, product], 1).topk(k, dim=1)
            named.copy_(torch.cat([named, labels[index]], 1).gather(1, chosen))
            similar.copy_(merged)
    return similar_Mk, labels_Mk


def hits(
    similar_Mk: torch.Tensor, labels_Mk: torch.Tensor, val_labels_M: torch.Tensor, temperature: float, classes: int
) -> int:
    """Number of validation samples that their neighbours classify correctly.

    Each neighbour votes for its class with weight exp(similarity / temperature).
    """
    right = 0
    for similar, named, label in zip(
        similar_Mk.split(CHUNK), labels_Mk.split(CHUNK), val_labels_M.split(CHUNK), strict=True
    ):
        votes = torch.zeros(len(similar), classes, device=similar.device)
        # relative to the greatest similarity, 1, which changes no winner: exp(1 / temperature) leaves float32 below a
        # temperature of 0.0113
        votes.scatter_add_(1, named, ((similar - 1) / temperature).exp())
        right += int((votes.argmax(1) == label).sum())
    return right


def knn_top1(
    train_features_ND: torch.Tensor,
    train_labels_N: torch.Tensor,
    val_features_MD: torch.Tensor,
    val_labels_M: torch.Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of validation samples that their neighbours classify correctly, in percent, for features in memory.

    Args:
        train_features_ND: float32 [N, D] of unit length.
        train_labels_N: int64 [N].
        val_features_MD: float32 [M, D] of unit length.
        val_labels_M: int64 [M].
        k: neighbours; at most N are used.
        temperature: temperature of the votes' weights; a lower one weighs near neighbours more.
    """
    classes = int(torch.cat([train_labels_N, val_labels_M]).max()) + 1
    tiles = zip(train_features_ND.split(TILE), train_labels_N.split(TILE), strict=True)
    found = nearest(tiles, val_features_MD, min(k, len(train_features_ND)))
    return 100 * hits(*found, val_labels_M, temperature, classes) / len(val_labels_M)


def knn_table(
    train: Bank,
    val: Bank,
    votes: Sequence[tuple[int, float]],
    classes: int,
    here: World,
    among: np.ndarray | None = None,
) -> list[float]:
    """Top-1 in percent for each (k, temperature), from one search for the largest k. A collective call.

    Every rank searches its own share of the training samples for the neighbours of all validation samples.

    Args:
        train: features to search.
        val: features to classify.
        votes: pairs of k and temperature.
        classes: C.
        here: this rank.
        among: int64[P], classes whose training samples are searched; None for all.
    """
    taken = np.ones(len(train), bool) if among is None else np.isin(train.labels_N.numpy(), among)
    taken[train.bad] = False
    largest, right = min(max(k for k, _ in votes), int(taken.sum())), [0] * len(votes)
    own = val.own(here)
    # as many parts on each rank, so that all take part in every gather; together the ranks' parts make a block
    blocks = -(-len(val) // BLOCK)
    tiles = blocks * -(-int(taken[here.rank :: here.size].sum()) // TILE)
    with progress("search for neighbours", tiles, "{:,} of {:,} tiles") as bar:
        for positions in np.array_split(own, blocks):
            features = all_gather_uneven(_unit(val, positions, here))
            labels = all_gather_uneven(val.labels_N[positions].to(here.device))
            found = attempt(here, lambda: nearest(_tiles(train, taken, here, bar), features, largest))  # noqa: B023
            similar_Mk, labels_Mk = _over_ranks(*found, here)
            # sorted by similarity: the neighbours for a smaller k are the first of those for the largest
            for place, (k, temperature) in enumerate(votes):
                right[place] += hits(similar_Mk[:, :k], labels_Mk[:, :k], labels, temperature, classes)
    return [100 * count / val.count for count in right]


def _tiles(bank: Bank, taken: np.ndarray, here: World, bar: Bar) -> Iterator[Tile]:
    own = np.arange(here.rank, len(bank), here.size)
    own = own[taken[own]]
    for start in range(0, len(own), TILE):
        positions = own[start : start + TILE]
        yield _unit(bank, positions, here), bank.labels_N[positions].to(here.device)
        bar.advance()


def _unit(bank: Bank, positions: np.ndarray, here: World) -> torch.Tensor:
    return F.normalize(bank.rows(positions).to(here.device), dim=1)


def _over_ranks(similar_Mk: torch.Tensor, labels_Mk: torch.Tensor, here: World) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest among all ranks' nearest."""
    if here.size == 1:
        return similar_Mk, labels_Mk
    k = similar_Mk.shape[1]

    def side_by_side(rows_Mk: torch.Tensor) -> torch.Tensor:
        return all_gather_rows(rows_Mk).view(here.size, -1, k).permute(1, 0, 2).flatten(1)

    # the k nearest of all ranks are among the k nearest of each
    merged, chosen = side_by_side(similar_Mk).topk(k, dim=1)
    return merged, side_by_side(labels_Mk).gather(1, chosen)


def check_k(k: int, sets: LabelledSets, k_flag: str) -> None:
    """Raise ProbeError if there are fewer training images than neighbours that are asked for."""
    images, held = len(sets.train_ids), counted(len(sets.train_ids), "labelled image")
    if k > images:
        raise ProbeError(f"{k_flag} is {k}, more than the {held} of {sets.train.path}; give at most {images}")


class Probe:
    """A kNN probe on two labelled sets, for any number of encoders.

    With several ranks, each computes its share of the features, and all return the same result.

    Args:
        train: labelled set to search for neighbours.
        val: labelled set to classify.
        image_size: side of the centre crop, in pixels.
        resize: short side before it.
        here: this rank.
        batch_size: images of a batch on a rank.
        precision: precision of the forward pass: fp32, bf16, fp16, or auto.
        options: of the pipeline; None for the defaults.
        k: the largest number of neighbours that will be asked for.
        k_flag: the flag that sets it.

    Attributes:
        sets: the two sets.
        backend: `dali-gpu`, `dali-cpu` or `torch`, which reads the images.

    Raises:
        ProbeError: a set has no labels, validation images have a class that the training set does not know, or
            the training set has fewer than `k` images.
        PipelineError: DALI is requested and not installed.
    """

    def __init__(
        self,
        train: str | Path,
        val: str | Path,
        image_size: int,
        resize: int,
        here: World,
        batch_size: int = 128,
        precision: str = "fp32",
        options: PipelineOptions | None = None,
        k: int = 1,
        k_flag: str = "--k",
    ) -> None:
        self.sets, self.here = LabelledSets(train, val, here=here), here
        if here.is_main:
            for note in self.sets.notes():
                log.info(note)
        check_k(k, self.sets, k_flag)
        self.backend, options = chosen(options or PipelineOptions(), here, self.sets.train, self.sets.val)
        self._extractor = partial(
            Extractor, resize=resize, crop=image_size, here=here, batch_size=batch_size, precision=precision,
            options=options,
        )  # fmt: skip
        self._logged: set[Scaling | None] = set()  # of the encoders so far

    def banks(self, encoder: nn.Module, digest: str = "", cache: Path | None = None) -> tuple[Bank, Bank]:
        """Features of both sets' samples that have a label.

        Args:
            encoder: on the rank's device.
            digest: hash of its weights; needed with a cache.
            cache: folder of features from earlier calls.
        """
        train, val = self.sets.train, self.sets.val
        # one for both sets: equal values stay equal
        scaling = scaling_for(getattr(encoder, "image_scaling", None), train, val)
        extractor = self._extractor(encoder, digest, cache=cache, scaling=scaling)
        if self.here.is_main and scaling not in self._logged:
            self._logged.add(scaling)
            extractor.log_scaling(train, val)
        return (
            extractor.bank(train, self.sets.train_ids, "train"),
            extractor.bank(val, self.sets.val_ids, "val").relabelled(self.sets.val_labels),
        )

    def table(
        self, banks: tuple[Bank, Bank], votes: Sequence[tuple[int, float]], all_classes: bool = False
    ) -> list[float]:
        """Top-1 in percent for each (k, temperature), among the validation set's classes or all."""
        among = None if all_classes else self.sets.among
        return knn_table(*banks, votes, self.sets.classes, self.here, among)

    def __call__(self, encoder: nn.Module, k: int = 20, temperature: float = 0.07) -> float:
        """Top-1 accuracy of the encoder's features in percent; the encoder's mode is restored."""
        (top1,) = self.table(self.banks(encoder), [(k, temperature)])
        return top1
