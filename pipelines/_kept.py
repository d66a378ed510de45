"""Memory that a stream still reads, kept until it has."""

from __future__ import annotations

from collections import deque
from typing import Any

_MOST = 2  # batches; the work on one is launched long after that on the one before the last


class Kept:
    """Keeps objects until an event on a stream is done.

    DALI gives the memory of a batch to later runs once nobody holds it, and does not know of torch's stream.
    """

    def __init__(self) -> None:
        self._kept: deque[tuple[Any, tuple[object, ...]]] = deque()

    def __len__(self) -> int:
        """Number of events that were not yet seen to be done."""
        return len(self._kept)

    def keep(self, event: Any, *held: object) -> None:
        """Keep objects until the event (`torch.cuda.Event`) is done; waits where too many events are not."""
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
