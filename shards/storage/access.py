"""Reading a set's files: from a local folder, or from a remote store through the node's cache.

A fault of reading is retried for as long as training waits, and raised as `Unavailable` then: it says nothing about an
image. A file that is missing is raised at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import Future


class Access(ABC):
    """Reads a set's files, from any number of threads; every method raises OSError."""

    @abstractmethod
    def read(self, name: str, most: int) -> bytes:
        """Content of a small file, which has at most so many bytes."""

    @abstractmethod
    def pread(self, name: str, size: int, offset: int, length: int, sha256: str) -> bytes:
        """`length` bytes at `offset` of a tar of `size` bytes; fewer if a local tar ends first.

        Args:
            name: The tar's name.
            size: Its size.
            offset: The first byte.
            length: Number of bytes.
            sha256: The tar's hash, by which a copy of it is checked.
        """

    @abstractmethod
    def reread(self, name: str, offset: int, length: int) -> bytes:
        """The bytes of a tar from where the set lies; a copy of the tar on this node is dropped."""

    def prefetch(self, name: str, size: int, sha256: str) -> Future[bool]:
        """Begin to fetch a tar; the future says whether it is local then (always, in a local set)."""
        done: Future[bool] = Future()
        done.set_result(True)
        return done

    def turns(self) -> Iterator[None]:
        """Attempts to read a file whose content is not as it should be, which may be a fault of the way."""
        yield

    def forget(self, name: str) -> None:  # noqa: B027 (a local set has no copies)
        """Drop a cached copy of a file."""

    @abstractmethod
    def give_up(self) -> None:
        """Let reads that have failed fail for good instead of being retried."""

    @abstractmethod
    def close(self) -> None:
        """Release resources; a later read acquires them again."""
