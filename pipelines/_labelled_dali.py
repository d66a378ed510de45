"""Labelled batches by DALI; those that it cannot decode are left to the torch backend."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import torch

from pipelines._threads import spread
from pipelines.centre import CentreParams
from pipelines.contract import BadImages, LabelledViews
from pipelines.dali import DaliBackend
from pipelines.views import ViewParams
from shards import SampleError, ShardSet

log = logging.getLogger("pipelines")


class LabelledDali:
    """Makes one view of each image of a batch.

    A batch with an image that cannot be decoded, or whose bytes differ from those packed, is made by the torch
    backend. So the same images are bad on both backends, with the same message.

    Args:
        shards: the set.
        backend: of one view.
        pool: threads that read.
        device: where the backend makes the views.
        params: maps a batch's ids to the parameters of its views.
        by_torch: makes the batch of some ids by the torch backend, as `batches` does.
    """

    def __init__(
        self,
        shards: ShardSet,
        backend: DaliBackend,
        pool: ThreadPoolExecutor,
        device: torch.device,
        params: Callable[[np.ndarray], ViewParams | CentreParams],
        by_torch: Callable[[np.ndarray], LabelledViews],
    ) -> None:
        self._shards, self._backend, self._pool = shards, backend, pool
        self._params, self._by_torch = params, by_torch
        # of its own: on the consumer's stream, encoding this batch would wait for the decoding of the next
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # the batches that are not collected yet; None in place of the images of one that is left to torch
        self._waiting: deque[tuple[np.ndarray, list[bytes] | None]] = deque()

    def batches(self, chosen: Iterable[np.ndarray]) -> Generator[LabelledViews, None, None]:
        """The batches of these ids, in order."""
        stream = nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        try:
            with stream:
                for ids in chosen:
                    self._waiting.append((ids, self._read(ids)))
                    self._submit(*self._waiting[-1])
                    if len(self._waiting) == self._backend.depth:
                        yield self._collect()
                while self._waiting:
                    yield self._collect()
        finally:
            self._waiting.clear()
            self._backend.drop()

    def _read(self, ids: np.ndarray) -> list[bytes] | None:
        try:
            return spread(self._pool, lambda slot: self._shards.check(int(ids[slot])), len(ids))
        except SampleError as error:
            log.warning("%s; the torch backend makes its batch", error)
            return None

    def _submit(self, ids: np.ndarray, encoded: list[bytes] | None) -> None:
        if encoded is not None:
            self._backend.submit(encoded, self._shards.sizes(ids), [self._params(ids)])

    def _collect(self) -> LabelledViews:
        ids, encoded = self._waiting.popleft()
        if encoded is None:
            return self._by_torch(ids)
        try:
            (views,) = self._backend.collect()
        except BadImages as bad:
            slot, cause = next(iter(bad.causes.items()))
            log.warning("sample %d %s; the torch backend makes its batch", ids[slot], cause)
            made = self._by_torch(ids)
            for later in self._waiting:  # the backend has dropped them
                self._submit(*later)
            return made
        return views, ids, None if self._stream is None else self._stream.record_event(), {}
