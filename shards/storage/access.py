"""Reading a set's files: from a local folder, or from a remote store through the node's cache.

A fault of reading is retried for as long as training waits, and raised as `Unavailable` then: it says nothing about an
image. A file that is missing is raised at once.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from shards.storage.base import Store
from shards.storage.cache import FOLDER, Cache, Differs, NotFetched
from shards.storage.faults import Unavailable
from shards.storage.local import LocalStore
from shards.storage.network import Network, pauses
from shards.storage.remote import RemoteStore
from shards.storage.retry import Host, retried
from shards.words import in_words

T = TypeVar("T")

log = logging.getLogger("shards")

_MAX_DESCRIPTORS = 512
_FETCHERS = 4  # shards that a process fetches at a time
_IDLE = 600.0  # seconds; a shard used more recently is not evicted for one that may be used
_NO_ROOM = 30.0  # seconds before another attempt to fill a full cache, or one whose disk failed
_SAY_AGAIN = 3600.0  # seconds before another warning of the cache's disk
_TURNS = 3  # further attempts at a file that is not as it should be
_FETCHES = 2  # of a tar that differs from its hash: the first one may have been garbled on the way
_IN_EVERY_SET = "manifest.json"  # by which the loss of a whole folder is told from that of one file
_OTHER_KIND = (IsADirectoryError, NotADirectoryError)  # waiting changes nothing


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


def open_access(store: Store, digest: str, network: Network) -> Access:
    """Access to the files of a set.

    Args:
        store: The set's files.
        digest: Identity of its bytes, its key in the node's cache.
        network: How long to wait for a disk, as for a store.

    Raises:
        PermissionError: The cache folder is not this user's.
    """
    if isinstance(store, LocalStore):
        return LocalAccess(store, network)
    assert isinstance(store, RemoteStore)
    try:
        return RemoteAccess(store, Cache(store, digest))
    except PermissionError:
        raise
    except OSError as error:
        log.warning("there is no cache: %s; all images are read from %s; %s", in_words(error), store.url, _REMEDY)
        return RemoteAccess(store, None)


class RemoteAccess(Access):
    """A remote store behind the node's cache.

    What is not in the cache is read by a request for exactly its bytes. In the background the whole shard is fetched if
    there is room; shards in use are not evicted for it. `prefetch` evicts the least recently used ones.
    """

    def __init__(self, store: RemoteStore, cache: Cache | None) -> None:
        self.store, self.cache = store, cache
        self._background = _Background()
        self._full_until = self._failed_until = 0.0
        self._said = -_SAY_AGAIN
        self._differed: Counter[str] = Counter()

    def read(self, name: str, most: int) -> bytes:
        """Content of a file; it is kept in the cache if there is room."""
        if self.cache is None:
            return self.store.read(name, most)
        try:
            data = self.cache.read(name)
        except OSError as error:
            data = self._failed(error)
        if data is not None:
            return data
        data = self.store.read(name, most)
        if time.monotonic() > self._failed_until:
            try:
                self.cache.keep(name, data, _IDLE)
            except OSError as error:
                self._failed(error)
        return data

    def pread(self, name: str, size: int, offset: int, length: int, sha256: str) -> bytes:
        """From the cache, or by a ranged request."""
        if self.cache is None:
            return self.store.read_range(name, offset, offset + length)
        try:
            data = self.cache.pread(name, offset, length)
        except OSError as error:
            data = self._failed(error)
        if data is not None:
            return data
        if time.monotonic() > self._full_until:
            self._background.submit(name, lambda: self._fetch(name, size, sha256, _IDLE, wait=False))
        return self.store.read_range(name, offset, offset + length)

    def reread(self, name: str, offset: int, length: int) -> bytes:
        """The bytes from the store; a copy in the cache is dropped."""
        self.forget(name)
        return self.store.read_range(name, offset, offset + length)

    def prefetch(self, name: str, size: int, sha256: str) -> Future[bool]:
        """Fetch a tar in the background."""
        return self._background.submit(name, lambda: self._fetch(name, size, sha256), first=True)

    def turns(self) -> Iterator[None]:
        """At once after the first, as a copy in the cache has been dropped; then with pauses."""
        yield
        yield
        for seconds in pauses(self.store.network.retries)[:_TURNS]:
            if not self.store.pause(seconds):
                return
            yield

    def forget(self, name: str) -> None:
        """See `Access.forget`."""
        if self.cache is not None:
            with contextlib.suppress(OSError):
                self.cache.path(name).unlink()

    def give_up(self) -> None:
        """See `Access.give_up`."""
        self.store.give_up()

    def close(self) -> None:
        """Cancel fetches that have not begun."""
        self._background.clear()

    def _fetch(self, name: str, size: int, sha256: str, idle: float = 0.0, wait: bool = True) -> bool:
        """Bring a tar into the cache; returns whether it is there now. Reads work without it."""
        if self.cache is None or time.monotonic() < self._failed_until or self._differed[name] >= _FETCHES:
            return False
        try:
            cached = self.cache.fetch(name, size, sha256, idle, wait)
        except NotFetched:  # reads of images meet the same fault, and report it
            return False
        except Differs as error:
            self._differed[name] += 1
            if self._differed[name] == _FETCHES:
                log.warning("%s is not kept in the cache: %s; its images are checked one by one", name, error.strerror)
            return False
        except OSError as error:
            self._failed(error)
            return False
        if idle and not cached:
            # Without this pause, each read of an image would list the whole cache to find that it is still full.
            self._full_until = time.monotonic() + _NO_ROOM
        return cached

    def _failed(self, error: OSError) -> None:
        """Leave the cache alone for a while after a fault of its disk, and say so once."""
        now = time.monotonic()
        self._failed_until = self._full_until = now + _NO_ROOM
        if now - self._said > _SAY_AGAIN:
            self._said = now
            log.warning("the cache cannot be used: %s; images are read from the store; %s", in_words(error), _REMEDY)


_REMEDY = f"free space there, or set {FOLDER} to a folder on another disk"


class _Background:
    """A few daemon threads that end when idle; no name is fetched twice at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[tuple[str, Callable[[], bool]]] = deque()
        self._futures: dict[str, Future[bool]] = {}
        self._threads = 0

    def submit(self, name: str, work: Callable[[], bool], first: bool = False) -> Future[bool]:
        with self._lock:
            if name in self._futures:
                return self._futures[name]
            future = self._futures[name] = Future()
            (self._waiting.appendleft if first else self._waiting.append)((name, work))
            if self._threads < _FETCHERS:
                self._threads += 1
                # Not a ThreadPoolExecutor: the interpreter would wait at exit for shards that nobody needs any more.
                threading.Thread(target=self._run, name="shards-fetch", daemon=True).start()
            return future

    def clear(self) -> None:
        with self._lock:
            for name, _ in self._waiting:
                self._futures.pop(name).cancel()
            self._waiting.clear()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                name, work = self._waiting.popleft()
                future = self._futures[name]
            cached = work()
            with self._lock:
                del self._futures[name]
            future.set_result(cached)  # without the lock: it calls what waits for it, which may submit again


def _descriptors() -> int:
    """Number of tars to keep open: a quarter of the process's limit, at most 512."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else max(8, min(_MAX_DESCRIPTORS, soft // 4))
