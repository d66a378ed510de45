"""Accuracy of linear classifiers on a set's features.

B: images, D: feature dimension, C: classes, L: classifiers, P: classes that may be guessed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from fastmoco.probes.features import Bank
from fastmoco.ranks.world import World

CHUNK = 8192
"""Features that are classified at once."""


@torch.no_grad()
def hits(
    heads: nn.ModuleList, features_BD: torch.Tensor, labels_B: torch.Tensor, among_P: torch.Tensor | None = None
) -> torch.Tensor:
    """int64 [L, 2]: number of images whose label is the first guess, and among the first five.

    Args:
        heads: the classifiers, linear layers [C, D].
        features_BD: float32.
        labels_B: int64.
        among_P: labels that may be guessed; None for all.
    """
    counts = []
    for head in heads:
        scores = head(features_BD)
        if among_P is not None:
            scores = torch.full_like(scores, -torch.inf).index_copy(1, among_P, scores[:, among_P])
        guesses = scores.topk(min(5, scores.shape[1]), dim=1).indices
        right = guesses == labels_B[:, None]
        # left on the device: reading a number here would wait for it at each chunk
        counts.append(torch.stack([right[:, 0].sum(), right.sum()]))
    return torch.stack(counts)


def accuracy(heads: nn.ModuleList, val: Bank, among: np.ndarray | None, here: World) -> list[list[float]]:
    """Top-1 and top-5 in percent of each classifier, the same on all ranks, which all call this.

    Args:
        heads: the classifiers, linear layers [C, D] on the rank's device.
        val: features and labels; of it each rank classifies its own part, so that no feature is sent.
        among: int64[P], labels that may be guessed; None for all.
        here: this rank.
    """
    among_P = None if among is None else torch.from_numpy(among).to(here.device)
    found = torch.zeros(len(heads), 2, dtype=torch.int64, device=here.device)
    own = val.own(here)
    for start in range(0, len(own), CHUNK):
        positions = own[start : start + CHUNK]
        features, labels = val.rows(positions), val.labels_N[positions]
        found += hits(heads, features.to(here.device), labels.to(here.device), among_P)
    if here.size > 1:
        dist.all_reduce(found)
    return (100 * found.double() / val.count).tolist()


def figures(name: str, own: Sequence[float], among_all: Sequence[float]) -> dict[str, float]:
    """A result's top-1 and top-5 under their names: among the validation set's own classes, and among all."""
    (top1, top5), (all1, all5) = own, among_all
    return {
        f"{name}_top1": top1, f"{name}_top5": top5,
        f"{name}_top1_all_classes": all1, f"{name}_top5_all_classes": all5,
    }  # fmt: skip
