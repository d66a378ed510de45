"""Training batches of a linear probe: features of random crops, or of centre crops that are computed once.

B: images of a rank's batch, D: feature dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch

from fastmoco.probes.features import Bank, Extractor
from fastmoco.ranks.world import World
from pipelines import EpochOrder, LabelledCrops

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]
"""Features float32 [B, D] and labels int64 [B], on the device."""


class Source(Protocol):
    """Batches of features; a pure function of (seed, epoch, step).

    Attributes:
        steps_per_epoch: the same on every rank.
    """

    steps_per_epoch: int

    def epoch(self, epoch: int, start: int) -> Batches:
        """This rank's batches of an epoch, from step `start` onwards."""
        ...


class CropFeatures:
    """Features of the random crops that `pipelines.LabelledCrops` makes.

    Args:
        extractor: computes them.
        crops: the crops.
        bad: receives the ids of bad images, which are left out.
    """

    def __init__(self, extractor: Extractor, crops: LabelledCrops, bad: set[int]) -> None:
        self._extractor, self._crops, self._bad = extractor, crops, bad
        self.steps_per_epoch = crops.steps_per_epoch

    def epoch(self, epoch: int, start: int) -> Batches:
        """See `Source.epoch`."""
        for batch in self._crops.epoch(epoch, start):
            features, labels = self._extractor.encode(batch.images), batch.labels.to(batch.images.device)
            if batch.bad:
                self._bad |= {int(batch.ids[place]) for place in batch.bad}
                good = [place for place in range(len(labels)) if place not in batch.bad]
                features, labels = features[good], labels[good]
            yield features, labels


class BankFeatures:
    """Features of a bank, in the order that random crops would have.

    A rank trains on those of the global batch that are in its own share of the bank. So their number differs from step
    to step, but no feature is sent between ranks.
    """

    def __init__(self, bank: Bank, global_batch: int, seed: int, here: World) -> None:
        self._bank, self._batch, self._seed, self._here = bank, global_batch, seed, here
        self.steps_per_epoch = self._order(0).steps

    def _order(self, epoch: int) -> EpochOrder:
        # as rank 0 of 1: the global batch, from which each rank takes what it holds
        return EpochOrder(len(self._bank), self._batch, 0, 1, self._seed, epoch)

    def epoch(self, epoch: int, start: int) -> Batches:
        """See `Source.epoch`."""
        order = self._order(epoch)
        for step in range(start, order.steps):
            positions = order.ids(step)
            own = positions[positions % self._here.size == self._here.rank]
            own = own[~np.isin(own, self._bank.bad)]
            yield self._bank.rows(own).to(self._here.device), self._bank.labels_N[own].to(self._here.device)
