"""The DALI backend: decodes and makes the views, on a GPU or on the CPU, several batches at once.

The GPU half has not been run yet; `docs/pipelines.md` says so as well.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from pipelines._threads import spread
from pipelines.augmentation import ViewPair, ViewSpec
from pipelines.choice import backend_name
from pipelines.contract import BadImages
from pipelines.dali_graph import Graph, Params
from pipelines.dali_input import as_pixels, parsed_size
from pipelines.decode import decode
from pipelines.errors import PipelineError
from pipelines.options import PipelineOptions
from pipelines.views import TWO_VIEWS

log = logging.getLogger("pipelines")

_DECODER_NAMES_IT = re.compile(r"Failed to decode sample #(\d+)")
_BEFORE_CAUSE = "encountered:"  # DALI's line between the operator's traceback and what failed
_AROUND_CAUSE = ("Critical error in pipeline", "Error in ", "C++ context", "Current pipeline object")
_NO_MEMORY = re.compile(
    r"out of memory|Can't allocate|Failed to allocate|allocation failed|bad_alloc|MemoryAllocation"
    r"|ALLOCATOR_FAILURE|nvImageCodec failure: '#(5|15)'|nvJPEG error \(5\)",
    re.IGNORECASE,
)
# statuses of nvImageCodec and nvJPEG other than those of a bad or unsupported image (3 and 4, 9, 13, 14, 18, 19)
_DEVICE_FAULT = re.compile(
    r"CUDA (runtime|driver) (API error|failure)|Unhandled CUDA error|cudaError|CUDA_ERROR|CUDA_CALL_ERROR"
    r"|illegal memory access|unspecified launch failure|NPP_?[a-z ]*error|nvml [a-z ]*error"
    r"|nvImageCodec failure: '#(1|2|6|7|8|10|11|12|16|17|20|21)'"
    r"|NVJPEG_STATUS_(NOT_INITIALIZED|INVALID_PARAMETER|EXECUTION_FAILED|ARCH_MISMATCH|INTERNAL_ERROR)",
    re.IGNORECASE,
)
_MEMORY_TO_SPARE = 1 << 28  # free bytes; below, a failure of the decoder is put down to memory and not to an image


@dataclass
class _Submitted:
    encoded: Sequence[bytes]
    sizes: np.ndarray
    params: Params
    bad: dict[int, str] = field(default_factory=dict)  # if not empty, the batch is not in the graph


class DaliBackend:
    """Decode once, then crop, resize, blur, flip and turn each view, in DALI.

    Args:
        spec: as of `Graph`.
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
        spec: ViewSpec | ViewPair,
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
        self._graph = Graph(spec, batch, device, threads, decoder_load, size_hint, views)
        self._submitted: deque[_Submitted] = deque()
        self._rejected: set[tuple[int, int]] = set()  # images by length and checksum

    def submit(self, encoded: Sequence[bytes], sizes: np.ndarray, params: Params, scalings: object = None) -> None:
        """See `pipelines.contract.Backend.submit`.

        An image that DALI's parser would reject, or that DALI has rejected, is decoded here, as by the torch backend:
        DALI gets its pixels. So both backends train on the same images. It has no 16 bits, and no scalings.
        """
        assert scalings is None
        batch = _Submitted(encoded, sizes, params)
        refused = [
            slot
            for slot, (data, size) in enumerate(zip(encoded, sizes.tolist(), strict=True))
            if parsed_size(data) != tuple(size) or (self._rejected and _identity(data) in self._rejected)
        ]
        pixels = self._pixels(batch, refused)
        if not batch.bad:
            self._graph.start([pixels.get(slot, data) for slot, data in enumerate(encoded)], params)
        self._submitted.append(batch)

    def collect(self) -> tuple[torch.Tensor, ...]:
        """See `pipelines.contract.Backend.collect`.

        Raises:
            BadImages: as there.
            PipelineError: memory ran out.
            RuntimeError: the device failed, or the batch fails although all of its images can be decoded.
        """
        while True:
            causes = self._submitted[0].bad
            if causes:
                self.drop()
                raise BadImages(causes)
            try:
                views = self._graph.finish()
            except RuntimeError as error:
                self._start_again(error)
            else:
                self._submitted.popleft()
                return views

    def views(self, encoded: Sequence[bytes], sizes: np.ndarray, params: Params) -> tuple[torch.Tensor, ...]:
        """Submit a batch and collect it; none may be in the backend."""
        self.submit(encoded, sizes, params)
        return self.collect()

    def drop(self) -> None:
        """See `pipelines.contract.Backend.drop`."""
        self._submitted.clear()
        self._graph.drain()

    def close(self) -> None:
        """Release the graph with DALI's threads and memory."""
        self._submitted.clear()
        self._graph.close()

    def _pixels(self, batch: _Submitted, slots: Sequence[int]) -> dict[int, bytes]:
        """The pixels of a batch's images at some places, as files; why others are bad goes into the batch."""

        def pixels(number: int) -> bytes | str:
            slot = slots[number]
            try:
                return as_pixels(decode(batch.encoded[slot], (int(batch.sizes[slot, 0]), int(batch.sizes[slot, 1]))))
            except ValueError as error:
                return str(error)

        found = dict(zip(slots, spread(self._pool, pixels, len(slots)), strict=True)) if slots else {}
        batch.bad |= {slot: cause for slot, cause in found.items() if isinstance(cause, str)}
        return {slot: data for slot, data in found.items() if isinstance(data, bytes)}

    def _start_again(self, error: RuntimeError) -> None:
        """Submit the batches again of which DALI rejected the first, without giving it the same images.

        A graph still works after a run that failed. DALI may crash if graphs are built again and again.
        """
        waiting = list(self._submitted)
        self.drop()
        first = waiting[0]
        self._pixels(first, range(len(first.encoded)))
        if first.bad:
            raise BadImages(first.bad) from error
        self._raise_fault(error)
        # if DALI names none, it is given none of the batch again
        named = [int(slot) for slot in _DECODER_NAMES_IT.findall(str(error))] or range(len(first.encoded))
        rejected = {_identity(first.encoded[slot]) for slot in named}
        if rejected <= self._rejected:
            raise error  # the graph's fault, not the images'
        self._rejected |= rejected
        log.warning("DALI rejects an image that the CPU decodes, and is given its pixels instead: %s", _cause(error))
        for batch in waiting:
            self.submit(batch.encoded, batch.sizes, batch.params)

    def _raise_fault(self, error: RuntimeError) -> None:
        """Raise if the device is at fault and not an image, so that no image is blamed for it."""
        if _DEVICE_FAULT.search(str(error)) and not _NO_MEMORY.search(str(error)):
            raise error
        free = torch.cuda.mem_get_info(self._device)[0] if self._device.type == "cuda" else None
        if _NO_MEMORY.search(str(error)) or (free is not None and free < _MEMORY_TO_SPARE):
            left = "" if free is None else f", {free / 2**20:.0f} MiB are free on {self._device}"
            raise PipelineError(
                f"DALI ran out of memory{left}: use a smaller batch, or --pipeline torch, which decodes on the CPU"
            ) from error


def _identity(data: bytes) -> tuple[int, int]:
    return len(data), zlib.crc32(data)


def _cause(error: RuntimeError) -> str:
    """The first line of DALI's message that says what failed, with the status of nvImageCodec in words."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = lines[lines.index(_BEFORE_CAUSE) + 1 :] if _BEFORE_CAUSE in lines else lines
    telling = [line for line in lines if line and not line.startswith(_AROUND_CAUSE)]
    return telling[0] if telling else repr(error)
