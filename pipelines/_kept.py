"""Keeps memory alive while a stream still reads it."""

from __future__ import annotations

from collections import deque
from typing import Any

_MOST = 2  # batches: the event of the one before last is done by the time the next is launched, so nobody waits


class Kept:
    """Keeps objects until an event on a stream is done.

    DALI reuses the memory of a batch as soon as its tensors are freed; it does not know of torch's stream.
    """

    def __init__(self) -> None:
        self._kept: deque[tuple[Any, tuple[object, ...]]] = deque()

    def __len__(self) -> int:
        """Number of events not yet known to be done."""
        return len(self._kept)

    def keep(self, event: Any, *held: object) -> None:
        """Keep objects until the event (`torch.cuda.Event`) is done; waits if too many are pending."""
        while self._kept and self._kept[0][0].query():
            self._kept.popleft()
        while len(self._kept) >= _MOST:
            self._kept[0][0].synchronize()
            self._kept.popleft()
        self._kept.append((event, held))

    def clear(self) -> None:
        """Wait for all events."""
        while self._kept:
            self._kept[0][0].synchronize()
            self._kept.popleft()
