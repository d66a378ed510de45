"""Trying again what failed because a store or the network did."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
log = logging.getLogger("shards")

DELAYS = (1.0, 4.0, 15.0)  # seconds before each further attempt: a moment's fault, a busy store, a restart of one
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError)  # answers, not faults: another attempt gets the same


class Retry:
    """The attempts that are left for one piece of work.

    Args:
        delays: Seconds before each further attempt.
    """

    def __init__(self, delays: Sequence[float] = DELAYS) -> None:
        self._delays = delays
        self.succeeded()

    def succeeded(self) -> None:
        """Count the attempts from the start again: the work got further."""
        self._left = list(self._delays)

    def wait(self, cause: object, what: str) -> bool:
        """Log the failure and wait before the next attempt; False, at once, where none is left."""
        if not self._left:
            return False
        delay = self._left.pop(0)
        log.warning("%s: %s; trying again in %.0f s", what, cause, delay)
        time.sleep(delay)
        return True


def retried(request: Callable[[], T], what: str) -> T:
    """The result of a request, which is made again after a failure.

    Args:
        request: What is done.
        what: Its object, for the log.

    Raises:
        OSError: A final one at once, any other when no attempt is left.
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
