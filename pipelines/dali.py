"""The DALI backend: decodes and makes the views, on a GPU or on the CPU, several batches at once.

The GPU half has not been run yet; `docs/pipelines.md` says so as well.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from pipelines._threads import spread
from pipelines.choice import backend_name
from pipelines.contract import BadImages
from pipelines.dali_graph import Graph, Params, unparsable
from pipelines.decode import decode
from pipelines.errors import PipelineError
from pipelines.options import PipelineOptions
from pipelines.views import TWO_VIEWS, ViewSpec

_DECODER_NAMES_IT = re.compile(r"Failed to decode sample #(\d+)")
_NO_MEMORY = re.compile(r"out of memory|Can't allocate|bad_alloc|MemoryAllocation", re.IGNORECASE)
_DEVICE_FAULT = re.compile(r"CUDA (runtime|driver) API error|cudaError|CUDA_ERROR|nvJPEG error|NPP error")
_MEMORY_TO_SPARE = 1 << 28  # free bytes; below, a failure of the decoder is put down to memory and not to an image


@dataclass
class _Submitted:
    encoded: Sequence[bytes]
    sizes: np.ndarray
    params: Params
    unparsable: dict[int, str]  # if not empty, the batch is not in the graph


class DaliBackend:
    """Decode once, then crop, resize, blur and flip each view, in DALI.

    Args:
        spec: the augmentation.
        batch: images a call.
        device: a CUDA device decodes and augments on it; the CPU has DALI's CPU operators do it.
        pool: threads that look for the bad images when DALI rejects a batch.
        threads: DALI's own threads.
        decoder_load: as of `PipelineOptions`.
        size_hint: as of `Graph`.
        views: as of `Graph`.
    """

    depth = 2
    """One batch is augmented while the next is decoded; meanwhile the caller reads the one after it."""

    def __init__(
        self,
        spec: ViewSpec,
        batch: int,
        device: torch.device,
        pool: ThreadPoolExecutor,
        threads: int,
        decoder_load: float = PipelineOptions.decoder_load,
        size_hint: tuple[int, int] | None = None,
        views: tuple[str, ...] = TWO_VIEWS,
    ) -> None:
        self.name = backend_name(device)
        self._device, self._pool = device, pool
        self._arguments = (spec, batch, device, threads, decoder_load, size_hint, views)
        self._graph: Graph | None = Graph(*self._arguments)
        self._submitted: deque[_Submitted] = deque()

    def submit(self, encoded: Sequence[bytes], sizes: np.ndarray, params: Params) -> None:
        """See `pipelines.contract.Backend.submit`."""
        causes = unparsable(encoded, sizes)
        if not causes:
            self._built().start(encoded, params)
        self._submitted.append(_Submitted(encoded, sizes, params, causes))

    def collect(self) -> tuple[torch.Tensor, ...]:
        """See `pipelines.contract.Backend.collect`."""
        batch = self._submitted[0]
        if batch.unparsable:
            self.drop()
            raise BadImages(batch.unparsable)
        try:
            views = self._built().finish()
        except RuntimeError as error:
            self._give_up()
            raise BadImages(self._causes(batch, error)) from error
        self._submitted.popleft()
        return views

    def views(self, encoded: Sequence[bytes], sizes: np.ndarray, params: Params) -> tuple[torch.Tensor, ...]:
        """Submit a batch and collect it; none may be in the backend."""
        self.submit(encoded, sizes, params)
        return self.collect()

    def drop(self) -> None:
        """See `pipelines.contract.Backend.drop`."""
        running = sum(not batch.unparsable for batch in self._submitted)
        self._submitted.clear()
        try:
            for _ in range(running):
                self._built().finish()
        except RuntimeError:
            self._give_up()

    def close(self) -> None:
        """Release the graph with DALI's threads and memory."""
        self._give_up()

    def _built(self) -> Graph:
        self._graph = self._graph or Graph(*self._arguments)
        return self._graph

    def _give_up(self) -> None:
        self._submitted.clear()
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()

    def _causes(self, batch: _Submitted, error: RuntimeError) -> dict[int, str]:
        """Why images of a batch that DALI rejected as a whole are bad, by place.

        The torch backend's decoder is tried first, so that both backends replace the same images. DALI's message then
        names the sample if its decoder failed. Otherwise DALI is run on halves of the batch.

        Raises:
            PipelineError: memory ran out.
            RuntimeError: the device failed, or no image by itself makes DALI fail.
        """
        self._raise_fault(error)

        def cause(slot: int) -> str | None:
            try:
                decode(batch.encoded[slot], (int(batch.sizes[slot, 0]), int(batch.sizes[slot, 1])))
            except ValueError as error:
                return str(error)
            return None

        found = dict(enumerate(spread(self._pool, cause, len(batch.encoded))))
        causes = {slot: cause for slot, cause in found.items() if cause is not None}
        named = _DECODER_NAMES_IT.search(str(error))
        if named:
            causes.setdefault(int(named[1]), _rejection(error))
        if not causes:
            causes = self._rejected(batch, np.arange(len(batch.encoded)), error)
            if len(causes) in (0, len(batch.encoded)):
                raise error  # the graph's fault, not the images'
        return causes

    def _rejected(self, batch: _Submitted, slots: np.ndarray, error: RuntimeError) -> dict[int, str]:
        """The images that DALI rejects in a part of a batch that it rejected, and why."""
        if len(slots) == 1:
            return {int(slots[0]): _rejection(error)}
        causes: dict[int, str] = {}
        for half in np.array_split(slots, 2):
            graph = self._built()
            graph.start([batch.encoded[slot] for slot in half], [view.take(half) for view in batch.params])
            try:
                graph.finish()
            except RuntimeError as of_half:
                self._give_up()
                self._raise_fault(of_half)
                causes |= self._rejected(batch, half, of_half)
        return causes

    def _raise_fault(self, error: RuntimeError) -> None:
        """Raise if the device is at fault and not an image, so that no image is replaced for it."""
        free = torch.cuda.mem_get_info(self._device)[0] if self._device.type == "cuda" else None
        if _NO_MEMORY.search(str(error)) or (free is not None and free < _MEMORY_TO_SPARE):
            left = "" if free is None else f", {free / 2**20:.0f} MiB are free on {self._device}"
            raise PipelineError(
                f"DALI ran out of memory{left}: use a smaller batch, or --pipeline torch, which decodes on the CPU"
            ) from error
        if _DEVICE_FAULT.search(str(error)):
            raise error


def _rejection(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith("Current pipeline object")]
    return f"DALI rejects it: {telling[-1] if telling else repr(error)}"
