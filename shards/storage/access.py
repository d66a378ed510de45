"""Reading a set's files: from a local folder, or from a remote store through the node's cache."""

from __future__ import annotations

import logging
import os
import resource
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path

from shards.storage.base import Store
from shards.storage.cache import Cache
from shards.storage.faults import Unavailable
from shards.storage.local import LocalStore

log = logging.getLogger("shards")

_MAX_DESCRIPTORS = 512
_FETCHERS = 4  # shards that a process fetches at a time
_IDLE = 600.0  # seconds; a shard used more recently is not evicted for one that may be used
_NO_ROOM = 30.0  # seconds before another attempt to fill a full cache


class Access(ABC):
    """Reads a set's files, from any number of threads; every method raises OSError."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Content of a small file."""

    @abstractmethod
    def pread(self, name: str, size: int, offset: int, length: int) -> bytes:
        """`length` bytes at `offset` of a tar of `size` bytes."""

    def prefetch(self, name: str, size: int) -> Future[bool]:
        """Begin to fetch a tar of `size` bytes; the future says whether it is local then (always, in a local set)."""
        done: Future[bool] = Future()
        done.set_result(True)
        return done

    def forget(self, name: str) -> bool:
        """Drop a cached copy of a file; returns whether there was one."""
        return False

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

    def __init__(self, store: LocalStore) -> None:
        self._folder = store.local
        self._tar = lru_cache(_descriptors())(lambda name: _Tar(self._folder / name))

    def read(self, name: str) -> bytes:
        """Content of a file."""
        return (self._folder / name).read_bytes()

    def pread(self, name: str, size: int, offset: int, length: int) -> bytes:
        """One pread; releases the GIL."""
        tar = self._tar(name)  # this reference keeps the descriptor open
        return os.pread(tar.descriptor, length, offset)

    def close(self) -> None:
        """Close the tars."""
        self._tar.cache_clear()


def open_access(store: Store, digest: str) -> Access:
    """Access to the files of a set.

    Args:
        store: The set's files.
        digest: Identity of its bytes, its key in the node's cache.

    Raises:
        OSError: The cache folder cannot be created.
    """
    return LocalAccess(store) if isinstance(store, LocalStore) else RemoteAccess(store, Cache(store, digest))


class RemoteAccess(Access):
    """A remote store behind the node's cache.

    What is not in the cache is read by a request for exactly its bytes. In the background the whole shard is fetched if
    there is room; shards in use are not evicted for it. `prefetch` evicts the least recently used ones.
    """

    def __init__(self, store: Store, cache: Cache) -> None:
        self.store, self.cache = store, cache
        self._background = _Background()
        self._full_until = 0.0

    def read(self, name: str) -> bytes:
        """Content of a file; it is kept in the cache if there is room."""
        try:
            return self.cache.path(name).read_bytes()
        except FileNotFoundError:
            data = self.store.read(name)
        try:
            self.cache.keep(name, data, _IDLE)
        except OSError as error:
            log.warning("cannot cache %s: %s", name, error)
        return data

    def pread(self, name: str, size: int, offset: int, length: int) -> bytes:
        """From the cache, or by a ranged request."""
        try:
            data = self.cache.pread(name, offset, length)
        except OSError as error:  # of the cache's disk
            log.warning("cannot read %s in the cache: %s", name, error)
            data = None
        if data is not None:
            return data
        if time.monotonic() > self._full_until:
            self._background.submit(name, lambda: self._fill(name, size))
        return self.store.read_range(name, offset, offset + length)

    def prefetch(self, name: str, size: int) -> Future[bool]:
        """Fetch a tar in the background."""
        return self._background.submit(name, lambda: self.cache.fetch(name, size), first=True)

    def forget(self, name: str) -> bool:
        """Drop a cached copy of a file; returns whether there was one."""
        try:
            self.cache.path(name).unlink()
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Cancel fetches that have not begun."""
        self._background.clear()

    def _fill(self, name: str, size: int) -> bool:
        cached = self.cache.fetch(name, size, _IDLE, wait=False)
        if not cached:
            # Without this pause, each read of an image would list the whole cache to find that it is still full.
            self._full_until = time.monotonic() + _NO_ROOM
        return cached


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
            cached = False
            try:
                cached = work()
            except Unavailable:  # reads of images meet the same fault, and report it
                pass
            except OSError as error:  # reads work without the cache
                log.warning("cannot cache %s: %s", name, error)
            with self._lock:
                del self._futures[name]
            future.set_result(cached)  # without the lock: it calls what waits for it, which may submit again


def _descriptors() -> int:
    """Number of tars to keep open: a quarter of the process's limit, at most 512."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else max(8, min(_MAX_DESCRIPTORS, soft // 4))
