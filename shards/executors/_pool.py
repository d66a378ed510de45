"""Shards packed by a pool of processes on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

from shards.executors._attempts import Attempts
from shards.files import own_partials
from shards.pool import apart_from_main
from shards.store import open_store
from shards.task import Event, Task, pack_shard

_POLL = 0.5  # seconds between signs of life to the caller
_GRACE = 5.0  # seconds that a worker has to take its half-written file away

_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    task: Task | None = field(default=None)


class Pool:
    """Spawned processes, one task at a time each, over a pipe of their own.

    A pipe each, and not one shared queue, so that a death names its shard and breaks nobody else.

    Args:
        tasks: The shards to pack.
        workers: Number of processes.
    """

    def __init__(self, tasks: Sequence[Task], workers: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._attempts = Attempts(tasks, workers)
        self._count = workers
        self._workers: list[_Worker] = []

    def run(self) -> Generator[Event, None, None]:
        """Start the processes, yield what they report, end them."""
        try:
            with _starting():
                for _ in range(self._count):
                    self._workers.append(self._start())
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
        worker.task = self._attempts.next()
        if worker.task is not None:
            with contextlib.suppress(OSError):  # a dead worker is found when it is listened to
                worker.pipe.send(worker.task)

    def _hear(self, worker: _Worker) -> Iterator[Event]:
        """One message of a worker, or its death."""
        assert worker.task is not None
        try:
            event = worker.pipe.recv()
        except (EOFError, OSError):
            yield from self._bury(worker, worker.task)
            return
        if event is None:
            self._give(worker)
        else:
            self._attempts.heard(worker.task, event)
            yield event

    def _bury(self, worker: _Worker, task: Task) -> Iterator[Event]:
        """Replace a dead worker; try its shard again, or report it as failed."""
        worker.process.join()
        worker.pipe.close()
        self._workers.remove(worker)
        code = worker.process.exitcode
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        yield from self._attempts.lost(task, f"{how}; out of memory?")
        if self._attempts:
            with _starting():
                fresh = self._start()
            self._workers.append(fresh)
            self._give(fresh)

    def _stop(self) -> None:
        for worker in self._workers:
            if worker.task is not None:
                worker.process.terminate()
            worker.pipe.close()
        deadline = time.monotonic() + _GRACE
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()


def _work(pipe: Connection) -> None:
    """Life of a worker process: tasks until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # also where they were not started by the main thread
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    task: Task | None = None
    try:
        while True:
            task = given = pipe.recv()
            for event in pack_shard(given):
                pipe.send(event)
            pipe.send(None)
    except (EOFError, OSError):
        os._exit(0)
    except SystemExit:  # it may have come between the opening of a file and the block that takes it away
        for path in own_partials(open_store(task.out).scratch) if task else ():
            path.unlink(missing_ok=True)
        raise


def _leave(*_: object) -> NoReturn:
    """End by an exception, so that the half-written file is taken away on the way out."""
    raise SystemExit(128 + signal.SIGTERM)


def _end_with_parent() -> None:
    """No worker outlives its parent, be it killed as it may."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os._exit(1)


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """Start processes apart from the main module and from Ctrl-C.

    Ctrl-C reaches the whole process group; this process ends its workers. There is a worker for each core,
    so NumPy's matrix products must not spread over all cores in each of them.
    """
    single = {name: "1" for name in _THREADS if name not in os.environ}
    os.environ.update(single)
    before = None
    with contextlib.suppress(ValueError):  # only the main thread may
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with apart_from_main():
            yield
    finally:
        for name in single:
            del os.environ[name]
        if before is not None:
            signal.signal(signal.SIGINT, before)
