"""Reading a set's files from a local folder."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from shards.storage.access import Access
from shards.storage.faults import Unavailable
from shards.storage.local import LocalStore
from shards.storage.network import Network, pauses
from shards.storage.retry import Host, retried

T = TypeVar("T")

_MAX_DESCRIPTORS = 512
_IN_EVERY_SET = "manifest.json"  # by which the loss of a whole folder is told from that of one file
_OTHER_KIND = (IsADirectoryError, NotADirectoryError)  # waiting changes nothing


class _Tar:
    """An open tar. The descriptor lives until its last reader is done, so that eviction interrupts no read."""

    __slots__ = ("descriptor",)

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):  # also called if `open` failed
            os.close(self.descriptor)


class LocalAccess(Access):
    """A folder whose tars are kept open."""

    def __init__(self, store: LocalStore, network: Network) -> None:
        self._store, self._folder = store, store.local
        self._tar = lru_cache(_descriptors())(lambda name: _Tar(self._folder / name))
        self._delays, self._host = pauses(network.retries), Host()

    def read(self, name: str, most: int) -> bytes:
        """Content of a file."""
        return self._patiently(name, lambda: self._store.read(name, most))

    def pread(self, name: str, size: int, offset: int, length: int, sha256: str) -> bytes:
        """One pread; releases the GIL."""
        try:
            data = os.pread(self._tar(name).descriptor, length, offset)
            if len(data) == length:
                return data
        except OSError:
            pass
        return self.reread(name, offset, length)

    def reread(self, name: str, offset: int, length: int) -> bytes:
        """The bytes, by as many preads as it takes."""

        def read() -> bytes:
            tar, data = self._tar(name), b""  # this reference keeps the descriptor open
            # A pread ends early before a sector that cannot be read; the next one raises what is wrong with it.
            while len(data) < length and (part := os.pread(tar.descriptor, length - len(data), offset + len(data))):
                data += part
            return data

        return self._patiently(name, read)

    def give_up(self) -> None:
        """See `Access.give_up`."""
        self._host.give_up()

    def close(self) -> None:
        """Close the tars."""
        self._tar.cache_clear()

    def _patiently(self, name: str, read: Callable[[], T]) -> T:
        place = str(self._folder / name)

        def once() -> T:
            try:
                return read()
            except _OTHER_KIND:
                raise
            except OSError as error:
                if error.errno == errno.EFBIG:
                    raise
                self._tar.cache_clear()  # descriptors of a mount that was lost stay stale when it is back
                gone = isinstance(error, FileNotFoundError)
                if gone and (self._folder / _IN_EVERY_SET).exists():
                    raise
                strerror = f"{error.strerror}, and the set is not there" if gone else error.strerror
                raise Unavailable(error.errno, strerror, place) from error

        return retried(once, place, self._delays, self._host)


def _descriptors() -> int:
    """Number of tars to keep open: a quarter of the process's limit, at most 512."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else max(8, min(_MAX_DESCRIPTORS, soft // 4))
