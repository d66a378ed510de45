"""A function over many items in processes: results in order, few in flight, nothing left behind."""

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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from shards.errors import PackError

Item = TypeVar("Item")
Result = TypeVar("Result")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 32 << 20  # bytes; the C library takes no larger threshold
_AHEAD = 4  # items per worker that are handed out before the first of them is done


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Results of `function` over `items`, in their order.

    Args:
        function: At the top of a module, so that it can be pickled.
        items: Read as they are needed.
        workers: Processes; 1 works in this one.

    Raises:
        PackError: A process died.
        Exception: Whatever `function` raises.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
    waiting: deque[Future[Result]] = deque()
    source = iter(items)
    try:
        while True:
            with apart_from_main():
                while len(waiting) < workers * _AHEAD and (item := next(source, _END)) is not _END:
                    waiting.append(pool.submit(function, item))  # pyright: ignore[reportArgumentType]
            if not waiting:
                return
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise PackError("a worker process died (out of memory?); run the same command again: it goes on") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_END = object()


def _begin() -> None:
    """Start of a worker's life: Ctrl-C is the parent's affair, and when that is gone the worker ends too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def apart_from_main() -> Iterator[None]:
    """Spawned processes import the main module otherwise: slow, or endless where that calls us unguarded."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def keep_freed_memory() -> None:
    """Have the C library keep the memory of one image for the next one.

    By default it returns large blocks at once, and the kernel clears every page again at its next use: a sixth of
    the time that a photograph takes to be resized. Nothing changes where the C library is not glibc.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, 8 * _LARGEST)
