"""The source of a pipeline's batches (the protocol and its implementation for a packed set) and their decoding."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any, Protocol

import torch

from pipelines._samples import Batch, Samples
from pipelines.contract import Backend, BadImages
from pipelines.order.epoch import EpochOrder


@dataclass
class Pending:
    """A batch that was read and is not decoded yet.

    Attributes:
        epoch: of the batch.
        step: of the batch.
        batch: the encoded images with their ids and parameters.
    """

    epoch: int
    step: int
    batch: Batch


@dataclass(frozen=True)
class Decoded:
    """A batch as the backend made it.

    Attributes:
        pending: the batch before it was decoded.
        query: as returned by `Backend.collect`.
        key: as returned by `Backend.collect`.
    """

    pending: Pending
    query: torch.Tensor
    key: torch.Tensor


class Feed(Protocol):
    """Reads one rank's batches, one after the other, in a background thread.

    Attributes:
        order: `global`, `sharded` or `stream`.
        steps: of an epoch.
        rank: whose batches these are.
    """

    order: str
    steps: int
    rank: int

    def places(self, epoch: int, step: int) -> Generator[Any, None, None]:
        """The arguments of `read` for each batch from (epoch, step) on, through all later epochs; endless."""
        ...

    def read(self, place: Any) -> Pending:
        """Read a batch."""
        ...

    def replace(self, read: Any, causes: Mapping[int, str]) -> None:
        """Replace a batch's images that cannot be decoded, here and in all later batches.

        Args:
            read: the batch, changed in place.
            causes: why images cannot be used, by place in the batch.
        """
        ...

    def give_up(self) -> None:
        """Let reads that wait for a store out of reach fail now, as their batch is not needed any more."""
        ...


class SetFeed:
    """The `Feed` of a packed set.

    Args:
        samples: reads the set.
        orders: maps an epoch to the rank's order.
    """

    def __init__(self, samples: Samples, orders: Callable[[int], EpochOrder]) -> None:
        first = orders(0)
        self.order, self.steps, self.rank = first.policy, first.steps, first.rank
        # two orders, for the end of an epoch and the beginning of the next; a sharded one takes time to compute
        self._samples, self._orders = samples, lru_cache(maxsize=2)(orders)

    def places(self, epoch: int, step: int) -> Generator[tuple[int, int], None, None]:
        """See `Feed.places`."""
        yield from ((epoch, coming) for coming in range(step, self.steps))
        yield from ((later, coming) for later in count(epoch + 1) for coming in range(self.steps))

    def read(self, place: tuple[int, int]) -> Pending:
        """See `Feed.read`."""
        epoch, step = place
        return Pending(epoch, step, self._samples.batch(self._orders(epoch), step))

    def replace(self, read: Pending, causes: Mapping[int, str]) -> None:
        """See `Feed.replace`."""
        self._samples.replace_undecodable(read.batch, self._orders(read.epoch), read.step, causes)

    def give_up(self) -> None:
        """See `Feed.give_up`."""
        self._samples.give_up()


def decoded(feed: Feed, backend: Backend, epoch: int, step: int) -> Generator[Decoded, None, None]:
    """The batches from (epoch, step) on, in order, with up to `Backend.depth` of them in the backend at once.

    Bad images are replaced, and their batch is made again with those submitted after it.
    """
    waiting: deque[Pending] = deque()
    try:
        with closing(feed.places(epoch, step)) as places:
            for place in places:
                waiting.append(feed.read(place))
                _submit(backend, waiting[-1])
                if len(waiting) == backend.depth:
                    yield Decoded(waiting[0], *_collect(feed, backend, waiting))
                    waiting.popleft()
    finally:
        backend.drop()


def _submit(backend: Backend, read: Pending) -> None:
    batch = read.batch
    backend.submit(batch.encoded, batch.sizes, batch.params, batch.scalings)


def _collect(feed: Feed, backend: Backend, waiting: deque[Pending]) -> tuple[torch.Tensor, ...]:
    while True:
        try:
            return backend.collect()
        except BadImages as bad:
            feed.replace(waiting[0], bad.causes)
            for read in waiting:
                _submit(backend, read)
