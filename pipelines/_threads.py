"""Threads that prepare batches: a pool in which torch uses one core per thread, and a bounded prefetcher."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar, cast

import numpy as np
import torch

from pipelines.errors import PipelineError

T = TypeVar("T")
_END = object()


def cores_of_rank() -> int:
    """The cores this process may use, shared equally among the ranks that torchrun started on this node."""
    # affinity and not the count of cores: containers and schedulers often allow a process few of a node's many
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def worker_pool(threads: int, name: str) -> ThreadPoolExecutor:
    """A pool of started threads in which torch's operations do not spread over further threads.

    OpenMP keeps torch.set_num_threads(1) for the calling thread only, but torch and MKL also use it for threads
    that are started later and for matrix products. So the caller's setting is restored once all workers have theirs.
    """
    if threads < 1:
        raise PipelineError(f"threads={threads}: use 1 or more, or None for one per core")
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    together = threading.Barrier(threads)
    setting = torch.get_num_threads()

    def start(_: int) -> None:
        torch.get_num_threads()  # the first use copies the process's setting, which must not undo the next line later
        torch.set_num_threads(1)
        together.wait()  # no thread can run two of these calls, so each runs one

    list(pool.map(start, range(threads)))
    torch.set_num_threads(setting)
    return pool


def spread(pool: ThreadPoolExecutor, function: Callable[[int], T], count: int) -> list[T]:
    """The results of ``function`` for 0 to ``count`` - 1, in that order, computed by the pool's threads.

    One job per thread and not per number, because submitting a job costs as much as a small image's colours. Images
    differ in size, so a thread fetches its next number when it is free.
    """
    results: list[T] = [None] * count  # type: ignore[list-item]
    numbers, taking = iter(range(count)), threading.Lock()

    def work() -> None:
        while True:
            with taking:
                number = next(numbers, None)
            if number is None:
                return
            results[number] = function(number)

    jobs = [pool.submit(work) for _ in range(min(count, pool._max_workers))]
    for job in jobs:
        job.result()
    return results


class HostMemory:
    """Host memory for batches, reused when a batch is no longer referenced.

    Fresh memory would cost page faults and clearing by the system for each batch. It is numpy's because numpy, unlike
    torch, asks Linux for huge pages.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}

    def lend(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """An uninitialised tensor; its memory returns when the last tensor that shares it is gone."""
        size = math.prod(shape) * dtype.itemsize
        free = self._free.setdefault(size, [])
        memory = free.pop() if free else np.empty(size, dtype=np.uint8)
        # all tensors on this memory keep `lent` alive, an object of its own whose end is noticed; `memory` outlives it
        lent = memory.view()
        weakref.finalize(lent, free.append, memory).atexit = False
        return torch.from_numpy(lent).view(dtype).view(*shape)


class Prefetcher(Generic[T]):
    """Makes items in a background thread, at most ``depth`` ahead of the consumer, and delivers them in order.

    An exception in the thread is raised in the consumer, with the thread's traceback, after the items made before it.
    `close` stops the thread, waits for the item it is making, and may be called at any time.

    Args:
        items: the thread iterates over them and closes them if they are a generator.
        depth: items kept ready, 1 or more.
        name: of the thread.
    """

    # not a queue.Queue: `close` has to wake a consumer and a producer that wait, and drop what is ready, in one step

    def __init__(self, items: Iterable[T], depth: int, name: str) -> None:
        self._items, self._depth = items, depth
        self._ready: deque[T] = deque()
        self._error: BaseException | None = None
        self._ended = self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended or self._stopped)
            if self._stopped:
                raise RuntimeError("the pipeline was closed while its batches were being read")
            if self._ready:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        raise StopIteration

    def close(self) -> None:
        """Stop the thread and wait for it; ready items are dropped."""
        with self._changed:
            self._stopped = True
            self._ready.clear()
            self._changed.notify_all()
        if self._thread is not threading.current_thread():  # a garbage collection in the thread may close it, too
            self._thread.join()

    def _run(self) -> None:
        try:
            items = iter(self._items)
            while self._wait_for_room():
                item = next(items, _END)
                if item is _END:
                    return
                with self._changed:
                    if self._stopped:
                        return
                    self._ready.append(cast(T, item))
                    self._changed.notify_all()
                del item  # or this frame would keep it, and its memory, until the next one is made
        except BaseException as error:  # raised in the consumer
            self._error = error
        finally:
            if isinstance(self._items, Generator):  # here: no other thread may close a generator while it runs
                self._items.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        """Wait until fewer than ``depth`` items are ready; returns whether to make another."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._ready) < self._depth or self._stopped)
            return not self._stopped
