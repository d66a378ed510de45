"""Settings of the connections to remote stores: time limit, retries, headers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from shards._software import made_by
from shards.errors import ShardSetError

TIMEOUT = 30.0  # seconds
_LONGEST = 30.0  # seconds: longest pause of our own
RETRIES = 6
WAIT = "FASTMOCO_STORE_WAIT"
_SECONDS = 300.0  # less than the ten minutes after which NCCL gives up on a rank that waits


@dataclass(frozen=True)
class Network:
    """How remote stores are reached; affects no byte of what is read.

    Attributes:
        timeout: Seconds until a connection, and between two parts of an answer, after which a request has failed.
        retries: Retries of a request after a fault of the way.
        headers: Headers for web servers, as pairs of name and value. They may hold secrets: never log or store them.
        user_agent: The User-Agent header for web servers; None: the program's name and version.
        of_set: Whether the files are those of a shard set, whose manifest says that they are there and how long they
            are: a refusal, and a body that is too short, are faults of the way then, and not the file's.
    """

    timeout: float = TIMEOUT
    retries: int = RETRIES
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    user_agent: str | None = None
    of_set: bool = False

    def all_headers(self) -> dict[str, str]:
        """The headers of a request to a web server."""
        # Many servers refuse aiohttp's own name as that of a robot.
        given = {name.title(): value for name, value in self.headers}  # the case of a name does not matter
        return {"User-Agent": self.user_agent or f"fastmoco/{made_by()['fastmoco']}", **given}


def pauses(retries: int) -> tuple[float, ...]:
    """Seconds before each retry: 1, 2, 4, ... up to 30."""
    return tuple(min(2.0**n, _LONGEST) for n in range(retries))


def patient_seconds() -> float:
    """Seconds for which training waits for a store that is out of reach: `FASTMOCO_STORE_WAIT`, by default 300.

    Raises:
        ShardSetError: It is not a number of seconds.
    """
    text = os.environ.get(WAIT, "")
    try:
        seconds = float(text) if text else _SECONDS
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86400:
        raise ShardSetError(f"{WAIT}={text!r} is not a number of seconds; give 0 to 86400, as in 600")
    return seconds


def patient() -> Network:
    """The settings of this process, with retries for `patient_seconds`."""
    seconds, retries = patient_seconds(), 0
    while sum(pauses(retries + 1)) <= seconds:
        retries += 1
    return replace(current(), retries=retries, of_set=True)


_current = Network()


def current() -> Network:
    """The settings of this process, which stores take when they are opened."""
    return _current


def set_current(network: Network) -> None:
    """Change the settings of this process."""
    global _current
    _current = network


@contextlib.contextmanager
def using(network: Network) -> Iterator[None]:
    """Change the settings of this process during a block."""
    before = current()
    set_current(network)
    try:
        yield
    finally:
        set_current(before)
