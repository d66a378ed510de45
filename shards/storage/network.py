"""Settings of the connections to remote stores: time limit, retries, headers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from shards._software import made_by

TIMEOUT = 30.0  # seconds
RETRIES = 6


@dataclass(frozen=True)
class Network:
    """How remote stores are reached; affects no byte of what is read.

    Attributes:
        timeout: Seconds until a connection, and between two parts of an answer, after which a request has failed.
        retries: Retries of a request after a fault of the way.
        headers: Headers for web servers, as pairs of name and value. They may hold secrets: never log or store them.
        user_agent: The User-Agent header for web servers; None: the program's name and version.
    """

    timeout: float = TIMEOUT
    retries: int = RETRIES
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    user_agent: str | None = None

    def all_headers(self) -> dict[str, str]:
        """The headers of a request to a web server."""
        # Many servers refuse aiohttp's own name as that of a robot.
        given = {name.title(): value for name, value in self.headers}  # the case of a name does not matter
        return {"User-Agent": self.user_agent or f"fastmoco/{made_by()['fastmoco']}", **given}


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
