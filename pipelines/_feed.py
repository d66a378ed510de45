"""The source of a pipeline's batches: the protocol, and its implementation for a packed set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any, Protocol

import torch

from pipelines._samples import Batch, Samples
from pipelines.contract import Backend, BadImages
from pipelines.order.epoch import EpochOrder


@dataclass(frozen=True)
class Decoded:
    """A batch as the backend made it.

    Attributes:
        epoch: of the batch.
        step: of the batch.
        batch: ids and parameters of the images.
        query: as returned by `Backend.views`.
        key: likewise.
    """

    epoch: int
    step: int
    batch: Batch
    query: torch.Tensor
    key: torch.Tensor


class Feed(Protocol):
    """Makes one rank's batches, one after the other, in a background thread.

    Attributes:
        order: `global`, `sharded` or `stream`.
        steps: of an epoch.
        rank: whose batches these are.
    """

    order: str
    steps: int
    rank: int

    def places(self, epoch: int, step: int) -> Iterator[Any]:
        """The arguments of `make` for each batch from (epoch, step) on, through all later epochs; endless."""
        ...

    def make(self, place: Any) -> Decoded:
        """Read and decode a batch."""
        ...


class SetFeed:
    """The `Feed` of a packed set.

    Args:
        samples: reads the set.
        backend: makes the views.
        orders: maps an epoch to the rank's order.
    """

    def __init__(self, samples: Samples, backend: Backend, orders: Callable[[int], EpochOrder]) -> None:
        first = orders(0)
        self.order, self.steps, self.rank = first.policy, first.steps, first.rank
        # two orders, for the end of an epoch and the beginning of the next; a sharded one takes time to compute
        self._samples, self._maker, self._orders = samples, backend, lru_cache(maxsize=2)(orders)

    def places(self, epoch: int, step: int) -> Iterator[tuple[int, int]]:
        """See `Feed.places`."""
        yield from ((epoch, coming) for coming in range(step, self.steps))
        yield from ((later, coming) for later in count(epoch + 1) for coming in range(self.steps))

    def make(self, place: tuple[int, int]) -> Decoded:
        """See `Feed.make`; where images are bad, they are replaced and the batch is made again."""
        epoch, step = place
        order = self._orders(epoch)
        batch = self._samples.batch(order, step)
        while True:
            try:
                query, key = self._maker.views(batch.encoded, batch.sizes, batch.params)
                return Decoded(epoch, step, batch, query, key)
            except BadImages as bad:
                self._samples.replace(batch, order, step, bad.causes)
