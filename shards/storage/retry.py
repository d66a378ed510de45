"""Retries of work that failed because of a store or the network."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

from shards.storage.faults import CutOff, Unavailable
from shards.storage.network import RETRIES, pauses

T = TypeVar("T")
log = logging.getLogger("shards")

_OBEYED = 120.0  # seconds: longest pause that a server may impose by Retry-After
_SAY = 4.0  # seconds: shorter pauses are not worth a line in the log
_SLACK = 1.0  # seconds: what the requests may take together, besides the pauses between them
_SAME_CUT = 3  # a body that ends at the same byte as often as this is the file's own fault
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError)  # a retry would get the same answer


DELAYS = pauses(RETRIES)  # together a minute: an outage of that length is waited for


class Retry:
    """The retries that are left for one piece of work.

    Args:
        delays: Seconds before each retry.
        host: The server that other threads use as well: they wait for the same pauses, and an outage is logged once.
    """

    def __init__(self, delays: Sequence[float] = DELAYS, host: Host | None = None) -> None:
        self._delays = delays
        self._host, self._always = host or Host(), host is None
        self._given_up = self._host.given_up
        self.succeeded()

    def succeeded(self) -> None:
        """Start counting again, because the work made progress."""
        self._done = 0
        self._began: float | None = None

    def wait(self, cause: object, what: str) -> bool:
        """Log the failure and wait before the next retry; return False if none is left."""
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        most = getattr(cause, "most", None)
        if self._done >= len(self._delays) or (most is not None and self._done >= most):
            return False
        # A server that lets every request time out must not cost that time once for each retry.
        if self._done and now - self._began > sum(self._delays) + _SLACK:
            return False
        delay = self._delays[self._done]
        self._done += 1
        asked = getattr(cause, "retry_after", None)
        if asked is not None:
            delay = max(delay, min(asked, _OBEYED))
            self._host.hold(delay)
        if self._always or (delay >= _SAY and self._host.is_news()):
            log.warning("%s: %s; trying again in %.0f s", what, getattr(cause, "strerror", None) or cause, delay)
        return self._host.sleep(delay, self._given_up)

    @property
    def waited(self) -> float:
        """Seconds since the first failure."""
        return 0.0 if self._began is None else time.monotonic() - self._began


class Host:
    """What this process knows of one server; shared by the threads that read from it.

    Attributes:
        answers: Requests that the server has answered; an answer that a file is missing counts.
        given_up: How often `give_up` was called.
    """

    def __init__(self) -> None:
        self.answers = self.given_up = 0
        self._changed = threading.Condition()
        self._down = False
        self._said = False
        self._held_until = 0.0

    def answered(self) -> None:
        """The server has answered a request."""
        self.answers += 1
        self._down = self._said = False

    def gave_up(self, answers: int) -> None:
        """A request has failed after all its retries; it began after `answers` answers."""
        if answers == self.answers:
            with self._changed:
                self._down = True
                self._changed.notify_all()

    def give_up(self) -> None:
        """Let the requests that have begun fail instead of being retried."""
        with self._changed:
            self.given_up += 1
            self._changed.notify_all()

    def hold(self, seconds: float) -> None:
        """The server wants no request for some seconds."""
        self._held_until = max(self._held_until, time.monotonic() + seconds)

    def is_news(self) -> bool:
        """Whether a failure has not been logged since the last answer."""
        said, self._said = self._said, True
        return not said

    def sleep(self, seconds: float = 0.0, given_up: int | None = None) -> bool:
        """Wait for `seconds`, and for a pause that the server wants; return False if a retry is of no use.

        That is so if the server is found to be down, or if `give_up` was called since it had been called `given_up`
        times (default: since now).
        """
        given_up = self.given_up if given_up is None else given_up
        end = max(time.monotonic() + seconds, self._held_until)
        with self._changed:
            while not self._down and self.given_up == given_up and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            return not self._down and self.given_up == given_up


@lru_cache(maxsize=1 << 16)
def host_of(place: str) -> Host:
    """The server of a URL without a path: `https://example.org`."""
    return Host()


def retried(request: Callable[[], T], what: str, delays: Sequence[float] = DELAYS, host: Host | None = None) -> T:
    """The result of `request`, retried after faults of the way.

    While a server is down, which is known once all retries of a request have failed, requests to it are not retried.

    Args:
        request: The work.
        what: What it concerns, for the log.
        delays: Seconds before each retry.
        host: The server.

    Raises:
        OSError: The file's own fault, at once. A body that is cut off at the same byte every time is one as well.
        Unavailable: No retry is left.
    """
    host = host or Host()
    retry, before, cuts = Retry(delays, host), host.answers, list[int]()
    while True:
        try:
            host.sleep()
            result = request()
        except Unavailable as error:
            if isinstance(error, CutOff) and error.received > 0:
                cuts.append(error.received)
                if host.answers and len(cuts) >= _SAME_CUT and len(set(cuts[-_SAME_CUT:])) == 1:
                    raise OSError(error.errno, error.strerror, error.filename) from error
            if not retry.wait(error, what):
                error.waited = retry.waited
                host.gave_up(before)
                raise
        except OSError:
            host.answered()
            raise
        else:
            host.answered()
            return result
