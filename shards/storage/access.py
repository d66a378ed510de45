"""The bytes of a set's files: from a local folder, or from a remote store through the node's cache."""

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
from shards.storage.local import LocalStore
from shards.storage.retry import retried

log = logging.getLogger("shards")

_MAX_DESCRIPTORS = 512
_FETCHERS = 4  # shards fetched at once by a process
_IDLE = 600.0  # seconds; a shard used since is not removed for one that is merely likely to be used
_NO_ROOM = 30.0  # seconds before filling the cache is tried again when it was full


class Access(ABC):
    """Reads of a set's files from any number of threads; all raise OSError."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """All of a small file."""

    @abstractmethod
    def pread(self, name: str, size: int, offset: int, length: int) -> bytes:
        """`length` bytes at `offset` of a tar of `size` bytes."""

    def prefetch(self, name: str, size: int) -> Future[bool]:
        """Begin to bring a tar of `size` bytes near; whether it is (it already is, unless it is remote)."""
        done: Future[bool] = Future()
        done.set_result(True)
        return done

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held; a later read takes it again."""


class _Tar:
    """An open tar; the descriptor lives until its last reader lets go, so that eviction cuts no read off."""

    __slots__ = ("descriptor",)

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class LocalAccess(Access):
    """A folder, with its tars held open."""

    def __init__(self, store: LocalStore) -> None:
        self._folder = store.local
        self._tar = lru_cache(_descriptors())(lambda name: _Tar(self._folder / name))

    def read(self, name: str) -> bytes:
        """All of a file."""
        return (self._folder / name).read_bytes()

    def pread(self, name: str, size: int, offset: int, length: int) -> bytes:
        """One pread; the GIL is free meanwhile."""
        tar = self._tar(name)  # held while it is read, so that nobody closes it
        return os.pread(tar.descriptor, length, offset)

    def close(self) -> None:
        """Close the tars."""
        self._tar.cache_clear()


def open_access(store: Store, digest: str) -> Access:
    """Access to the files of a set.

    Args:
        store: Where the set lies.
        digest: Identity of its bytes, by which the node's cache knows it.

    Raises:
        OSError: The cache's folder cannot be made.
    """
    return LocalAccess(store) if isinstance(store, LocalStore) else RemoteAccess(store, Cache(store, digest))


class RemoteAccess(Access):
    """A remote store behind the node's cache.

    What is not in the cache is read by a request for just its bytes. Meanwhile the shard is fetched whole while there
    is room for it, in the background; shards in use are not removed for it. `prefetch` removes what was used longest
    ago.
    """

    def __init__(self, store: Store, cache: Cache) -> None:
        self.store, self.cache = store, cache
        self._background = _Background()
        self._full_until = 0.0

    def read(self, name: str) -> bytes:
        """All of a file; it stays in the cache where there is room."""
        try:
            return self.cache.path(name).read_bytes()
        except FileNotFoundError:
            data = retried(lambda: self.store.read(name), name)
        try:
            self.cache.keep(name, data, _IDLE)
        except OSError as error:
            log.warning("cannot cache %s: %s", name, error)
        return data

    def pread(self, name: str, size: int, offset: int, length: int) -> bytes:
        """From the cache, or by a ranged request."""
        data = self.cache.pread(name, offset, length)
        if data is not None:
            return data
        if time.monotonic() > self._full_until:
            self._background.submit(name, lambda: self._fill(name, size))
        return retried(lambda: self.store.read_range(name, offset, offset + length), name)

    def prefetch(self, name: str, size: int) -> Future[bool]:
        """Fetch a tar in the background."""
        return self._background.submit(name, lambda: self.cache.fetch(name, size), first=True)

    def close(self) -> None:
        """Drop what has not begun to be fetched."""
        self._background.clear()

    def _fill(self, name: str, size: int) -> bool:
        there = self.cache.fetch(name, size, _IDLE, wait=False)
        if not there:
            self._full_until = time.monotonic() + _NO_ROOM
        return there


class _Background:
    """A few daemon threads that end when there is nothing to do; each name is worked on once at a time."""

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
            there = False
            try:
                there = work()
            except OSError as error:  # reading goes on without the cache, and fails by itself where it must
                log.warning("cannot cache %s: %s", name, error)
            with self._lock:
                del self._futures[name]
            future.set_result(there)


def _descriptors() -> int:
    """Tars to hold open: a quarter of what the process may open, at most 512."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else max(8, min(_MAX_DESCRIPTORS, soft // 4))
