"""A rank's own work in a step: the query encoder's forward pass, which no other rank delays."""

from __future__ import annotations

import time
from collections import deque

import torch
from torch import nn

_MOST = 256  # steps whose events are kept on a GPU; the others' time is not needed for a mean


class OwnTime:
    """Measures the forward passes of a module: on a GPU by its events, without waiting for it."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds, self._passes = 0.0, 0
        self._begun = 0.0
        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque(maxlen=_MOST)
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._end)

    def _begin(self, *_: object) -> None:
        if not self._on_gpu:
            self._begun = time.perf_counter()
            return
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record()
        self._events.append(pair)

    def _end(self, *_: object) -> None:
        if self._on_gpu:
            self._events[-1][1].record()
            return
        self._seconds += time.perf_counter() - self._begun
        self._passes += 1

    def take(self) -> tuple[float, int]:
        """Seconds and number of the passes since the last call; on a GPU of those that are complete."""
        while self._events and self._events[0][1].query():
            start, end = self._events.popleft()
            self._seconds += start.elapsed_time(end) / 1000
            self._passes += 1
        taken, self._seconds, self._passes = (self._seconds, self._passes), 0.0, 0
        return taken
