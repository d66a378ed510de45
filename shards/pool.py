"""A map over many items in a pool of processes or threads: results in order, few items in flight, none left behind."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from shards.errors import PackError

Item = TypeVar("Item")
Result = TypeVar("Result")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 32 << 20  # bytes; glibc accepts no larger threshold
_AHEAD = 4  # items per worker that are submitted before the first result is taken


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Results of `function` over `items`, in order.

    Args:
        function: Defined at the top of a module, so that it can be pickled.
        items: Consumed only as far as needed.
        workers: Number of processes; with 1, the calling process does the work.

    Raises:
        PackError: A worker process died.
        Exception: What `function` raises.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    # "spawn" for the reason in packing/executors/_pool.py: a fork copies locks that other threads hold.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        yield from _in_order(pool, function, items, workers * _AHEAD, apart_from_main)
    except BrokenProcessPool:
        raise PackError("a worker process died (out of memory?); run the same command again to continue") from None


def thread_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """As `process_map`, by threads: for what waits for the network."""
    yield from _in_order(ThreadPoolExecutor(workers), function, items, workers)


def _in_order(
    pool: Executor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    ahead: int,
    submitting: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> Generator[Result, None, None]:
    """Results in order, of which the pool makes `ahead` in advance; ends the pool."""
    waiting: deque[Future[Result]] = deque()
    source = iter(items)
    try:
        while True:
            while len(waiting) < ahead and (item := next(source, _END)) is not _END:
                with submitting():  # an executor starts its processes when work is submitted
                    waiting.append(pool.submit(function, item))  # pyright: ignore[reportArgumentType]
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_END = object()


def _begin() -> None:
    """Initialise a worker: the parent handles Ctrl-C, and a worker ends when its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        # The queue does not end with the parent, as each worker holds its writing end, too.
        wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def apart_from_main() -> Iterator[None]:
    """Keep spawned processes from importing the main module.

    It may be slow to import, and without an `if __name__` guard each process would start the whole work again.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def keep_freed_memory() -> None:
    """Let glibc keep the memory of one image for the next.

    By default it returns large blocks to the kernel at once, which then clears every page again at its next use: a
    sixth of the time that resizing a photograph takes. Other C libraries are left as they are.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, 8 * _LARGEST)
