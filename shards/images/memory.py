"""Memory that is used again for the next image."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import DTypeLike, NDArray

_MOST = 1 << 26  # bytes kept of one kind; larger images are rare, and their memory would stay with every thread


class Memory(threading.local):
    """Memory for one image per thread, reused for the next: the system would have to clear fresh pages for each."""

    def __init__(self) -> None:
        self._rooms: dict[str, NDArray[np.uint8]] = {}

    def room(self, kind: str, count: int, dtype: DTypeLike = np.uint8) -> np.ndarray:
        """Uninitialised numbers, valid until this thread's next call of the same kind.

        Args:
            kind: What they are for.
            count: The least number of them; there are more, so that the memory seldom grows.
            dtype: Their type.
        """
        size = count * np.dtype(dtype).itemsize
        room = self._rooms.get(kind)
        if room is None or len(room) < size:
            room = np.empty(-(-size * 3 // 2 // 64) * 64, np.uint8)
            if len(room) <= _MOST:
                self._rooms[kind] = room
        return room.view(dtype)
