"""Who packs the shards: this process, or a pool of others. Either yields the same events.

An executor takes tasks and yields `Progress` while they run, then `Packed` or `Failed` for each of them, in any
order. A shard's bytes depend on its task alone, so they do not depend on the executor.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import types
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from shards.task import Event, Failed, Task, pack_shard

_ATTEMPTS = 2  # a worker that dies (killed for memory, say) is replaced and its shard tried once more
_POLL = 0.5  # seconds between signs of life to the caller


def run(tasks: Sequence[Task], workers: int) -> Generator[Event, None, None]:
    """Pack `tasks` in this process (`workers` 1, or a single task) or in a pool of processes."""
    workers = min(workers, len(tasks))
    if workers > 1:
        return _Pool(tasks, workers).run()
    return (event for task in tasks for event in pack_shard(task))


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    task: Task | None = field(default=None)


class _Pool:
    """Spawned processes, one task at a time each, over a pipe of their own.

    A pipe each, and not one shared queue, so that a death names its shard and breaks nobody else, and so that a
    worker whose parent is gone finds its pipe broken at its next report and ends.
    """

    def __init__(self, tasks: Sequence[Task], workers: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._waiting = deque(tasks)
        self._attempts: dict[int, int] = {}
        self._count = workers
        self._workers: list[_Worker] = []

    def run(self) -> Generator[Event, None, None]:
        try:
            with _starting():
                self._workers = [self._start() for _ in range(self._count)]
            for worker in self._workers:
                self._give(worker)
            while busy := [worker for worker in self._workers if worker.task is not None]:
                ready = wait([worker.pipe for worker in busy], timeout=_POLL)
                for worker in busy:
                    if worker.pipe in ready:
                        yield from self._hear(worker)
                if not ready:
                    yield Event()
        finally:
            self._stop()

    def _start(self) -> _Worker:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_work, args=(there,), daemon=True)
        process.start()
        there.close()
        return _Worker(process, here)

    def _give(self, worker: _Worker) -> None:
        worker.task = self._waiting.popleft() if self._waiting else None
        if worker.task is not None:
            with contextlib.suppress(OSError):  # a dead worker is found when it is listened to
                worker.pipe.send(worker.task)

    def _hear(self, worker: _Worker) -> Iterator[Event]:
        """One message of a worker, or its death."""
        try:
            event = worker.pipe.recv()
        except (EOFError, OSError):
            yield from self._bury(worker)
            return
        if event is None:
            self._give(worker)
        else:
            yield event

    def _bury(self, worker: _Worker) -> Iterator[Event]:
        """Replace a dead worker; try its shard again, or report it as failed."""
        worker.process.join()
        worker.pipe.close()
        task = worker.task
        self._workers.remove(worker)
        if task is not None:
            tried = self._attempts[task.shard] = self._attempts.get(task.shard, 0) + 1
            if tried < _ATTEMPTS:
                self._waiting.appendleft(task)
            else:
                code = worker.process.exitcode
                how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                yield Failed(task.shard, f"its worker process died {_ATTEMPTS} times ({how}; out of memory?)")
        if self._waiting:
            with _starting():
                fresh = self._start()
            self._workers.append(fresh)
            self._give(fresh)

    def _stop(self) -> None:
        for worker in self._workers:
            if worker.task is not None:
                worker.process.terminate()
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join()


def _work(pipe: Connection) -> None:
    """Life of a worker process: tasks until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # also where they were not started by the main thread
    with contextlib.suppress(EOFError, OSError):
        while True:
            task = pipe.recv()
            for event in pack_shard(task):
                pipe.send(event)
            pipe.send(None)
    os._exit(0)


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """Start processes apart from the main module and from Ctrl-C.

    Spawned processes import the main module otherwise: slow where it imports torch, endless where it calls `pack`
    unguarded. Ctrl-C reaches the whole process group; this process ends its workers.
    """
    main, before = sys.modules["__main__"], None
    sys.modules["__main__"] = types.ModuleType("__main__")
    with contextlib.suppress(ValueError):  # only the main thread may
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if before is not None:
            signal.signal(signal.SIGINT, before)
