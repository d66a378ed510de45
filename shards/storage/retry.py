"""Retries of work that failed because of a store or the network."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
log = logging.getLogger("shards")

DELAYS = (1.0, 4.0, 15.0)  # seconds before each retry: for a dropped packet, a busy store, a store that restarts
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError)  # a retry would get the same answer


class Retry:
    """The retries that are left for one piece of work.

    Args:
        delays: Seconds before each retry.
    """

    def __init__(self, delays: Sequence[float] = DELAYS) -> None:
        self._delays = delays
        self.succeeded()

    def succeeded(self) -> None:
        """Start counting again, because the work made progress."""
        self._left = list(self._delays)

    def wait(self, cause: object, what: str) -> bool:
        """Log the failure and wait before the next retry; return False at once if none is left."""
        if not self._left:
            return False
        delay = self._left.pop(0)
        log.warning("%s: %s; trying again in %.0f s", what, cause, delay)
        time.sleep(delay)
        return True


def retried(request: Callable[[], T], what: str) -> T:
    """The result of `request`, retried after failures.

    Args:
        request: The work.
        what: What it concerns, for the log.

    Raises:
        OSError: One of `FINAL` at once, any other when no retry is left.
    """
    retry = Retry()
    while True:
        try:
            return request()
        except FINAL:
            raise
        except OSError as error:
            if not retry.wait(error, what):
                raise
