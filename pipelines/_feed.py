"""Where a pipeline's batches come from, and that of a shard set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any, Protocol

import torch

from pipelines._samples import Batch, Samples, decode_batch
from pipelines.contract import Backend
from pipelines.order.epoch import EpochOrder


@dataclass(frozen=True)
class Decoded:
    """A batch as the backend made it.

    Attributes:
        epoch: of the batch.
        step: likewise.
        batch: ids and parameters of the images.
        query: as `Backend.views` gave it.
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
        """What `make` needs for each batch from (epoch, step) on, through all later epochs; never ends."""
        ...

    def make(self, place: Any) -> Decoded:
        """Read and decode a batch."""
        ...


class SetFeed:
    """The `Feed` of a packed set.

    Args:
        samples: reads it.
        backend: makes the views.
        orders: gives (epoch) -> the rank's order.
    """

    def __init__(self, samples: Samples, backend: Backend, orders: Callable[[int], EpochOrder]) -> None:
        first = orders(0)
        self.order, self.steps, self.rank = first.policy, first.steps, first.rank
        self._samples, self._maker, self._orders = samples, backend, lru_cache(maxsize=2)(orders)

    def places(self, epoch: int, step: int) -> Iterator[tuple[int, int]]:
        """See `Feed.places`."""
        yield from ((epoch, coming) for coming in range(step, self.steps))
        yield from ((later, coming) for later in count(epoch + 1) for coming in range(self.steps))

    def make(self, place: tuple[int, int]) -> Decoded:
        """See `Feed.make`."""
        epoch, step = place
        return Decoded(epoch, step, *decode_batch(self._samples, self._maker, self._orders(epoch), step))
