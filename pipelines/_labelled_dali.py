"""Labelled batches by DALI; those that it cannot decode are left to the torch backend."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from pipelines._threads import spread
from pipelines.centre import CentreParams
from pipelines.contract import BadImages
from pipelines.dali import DaliBackend
from pipelines.views import ViewParams
from shards import SampleError, ShardSet

log = logging.getLogger("pipelines")


class LabelledDali:
    """Makes one view of each image of a batch.

    A batch with an image that cannot be decoded, or whose bytes differ from those packed, is made by the torch
    backend. So a damaged image ends an evaluation on both backends or on neither, with the same message.

    Args:
        shards: the set.
        backend: of one view.
        pool: threads that read.
        device: where the backend makes the views.
        params: maps a batch's ids to the parameters of its views.
        by_torch: makes a batch's views by the torch backend, in host memory.
    """

    def __init__(
        self,
        shards: ShardSet,
        backend: DaliBackend,
        pool: ThreadPoolExecutor,
        device: torch.device,
        params: Callable[[np.ndarray], ViewParams | CentreParams],
        by_torch: Callable[[np.ndarray], torch.Tensor],
    ) -> None:
        self._shards, self._backend, self._pool = shards, backend, pool
        self._params, self._by_torch = params, by_torch
        # of its own: on the consumer's stream, encoding this batch would wait for the decoding of the next
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # the batches that are not collected yet; None in place of the images of one that is left to torch
        self._waiting: deque[tuple[np.ndarray, list[bytes] | None]] = deque()

    def batches(self, chosen: Iterable[np.ndarray]) -> Generator[tuple[torch.Tensor, np.ndarray, Any], None, None]:
        """The views of batches of ids, in order.

        Yields:
            uint8[B, S, S, 3]; the ids; and the torch.cuda.Event after which the views are complete, None if they are in
            host memory.
        """
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

    def _collect(self) -> tuple[torch.Tensor, np.ndarray, Any]:
        ids, encoded = self._waiting.popleft()
        if encoded is None:
            return self._by_torch(ids), ids, None
        try:
            (views,) = self._backend.collect()
        except BadImages as bad:
            slot, cause = next(iter(bad.causes.items()))
            log.warning("sample %d %s; the torch backend makes its batch", ids[slot], cause)
            views = self._by_torch(ids)  # raises for what it cannot decode either
            for later in self._waiting:  # the backend has dropped them
                self._submit(*later)
            return views, ids, None
        return views, ids, None if self._stream is None else self._stream.record_event()
