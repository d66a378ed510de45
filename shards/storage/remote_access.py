"""Reading a set's files from a remote store through the node's cache."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from shards.storage.access import Access
from shards.storage.cache import FOLDER, Cache, Differs, NotFetched
from shards.storage.network import pauses
from shards.storage.remote import RemoteStore
from shards.words import in_words

log = logging.getLogger("shards")

_FETCHERS = 4  # shards that a process fetches at a time
_IDLE = 600.0  # seconds; a shard used more recently is not evicted for one that may be used
_NO_ROOM = 30.0  # seconds before another attempt to fill a full cache, or one whose disk failed
_SAY_AGAIN = 3600.0  # seconds before another warning of the cache's disk
_TURNS = 3  # further attempts at a file that is not as it should be
_FETCHES = 2  # of a tar that differs from its hash: the first one may have been garbled on the way
REMEDY = f"free space there, or set {FOLDER} to a folder on another disk"


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
            log.warning("the cache cannot be used: %s; images are read from the store; %s", in_words(error), REMEDY)


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
