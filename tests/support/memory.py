"""What memory a piece of code takes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Peak:
    """The most bytes that Python and numpy held at once; known at the end of `peak_memory`."""

    bytes: int = 0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Watch the memory that the code inside takes, beyond what was held before."""
    peak = Peak()
    tracemalloc.start()
    try:
        yield peak
        peak.bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
