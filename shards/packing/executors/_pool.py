"""Packing by a pool of processes on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

from shards.packing.executors._attempts import Attempts
from shards.packing.task import Done, Event, Failed, Work, Written, perform
from shards.pool import apart_from_main, keep_freed_memory
from shards.storage.files import own_partials
from shards.storage.store import open_store

_POLL = 0.5  # seconds after which the caller gets an empty event
_EARLY = 4  # processes that are started before the tasks are known
_GRACE = 5.0  # seconds that a worker has to remove its unfinished file
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    tasks: dict[int, Work] = field(default_factory=dict)  # by number: one that waits for the disk, one in progress
    idle: bool = True


class Pool:
    """Spawned processes that do one task each, and the next one while the files of the last one are synced to disk.

    Each process has a pipe of its own: with a shared queue, a process that dies could not be matched to its shard, and
    could leave the queue locked for the others.

    Args:
        workers: Number of processes. A few are started when the pool is entered, the others with the tasks.
    """

    def __init__(self, workers: int) -> None:
        # A fork copies locks that other threads hold (BLAS, Arrow, a caller's torch), and nobody releases the copies.
        self._context = multiprocessing.get_context("spawn")
        self._count = workers
        self._workers: list[_Worker] = []

    def __enter__(self) -> Pool:
        self._grow(min(self._count, _EARLY))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def run(self, tasks: Sequence[Work]) -> Generator[Event, None, None]:
        """Do tasks and yield what the processes report; unless all are done, the processes are ended."""
        self._attempts = Attempts(tasks, self._count)
        complete = False
        try:
            self._grow(min(self._count, len(tasks)))
            for worker in self._workers:
                self._give(worker)
            while busy := [worker for worker in self._workers if worker.tasks or not worker.idle]:
                ready = wait([worker.pipe for worker in busy], timeout=_POLL)
                for worker in busy:
                    if worker.pipe in ready:
                        yield from self._hear(worker)
                if not ready:
                    yield Event()
            complete = True
        finally:
            if not complete:
                self._stop()

    def _grow(self, count: int) -> None:
        with _starting():
            while len(self._workers) < count:
                here, there = self._context.Pipe()
                process = self._context.Process(target=_work, args=(there,), daemon=True)
                process.start()
                there.close()  # the worker's copy is the only one left, so that its death ends the pipe
                self._workers.append(_Worker(process, here))

    def _give(self, worker: _Worker) -> None:
        task = self._attempts.next()
        worker.idle = task is None
        if task is not None:
            worker.tasks[task.number] = task
            with contextlib.suppress(OSError):  # a dead worker is noticed when its pipe is read
                worker.pipe.send(task)

    def _hear(self, worker: _Worker) -> Iterator[Event]:
        """One message from a worker, or its death."""
        try:
            number, event = worker.pipe.recv()
        except (EOFError, OSError):
            yield from self._bury(worker)
            return
        if event is None:
            self._give(worker)
            return
        self._attempts.heard(worker.tasks[number], event)
        if isinstance(event, Done | Failed):
            del worker.tasks[number]
        yield event

    def _bury(self, worker: _Worker) -> Iterator[Event]:
        """Replace a dead worker; retry its shards, or report them as failed."""
        worker.process.join()
        worker.pipe.close()
        self._workers.remove(worker)
        code = worker.process.exitcode
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        # In the order in which they were given: all but the last wait for the disk only, and did not kill the worker.
        # There are none if it died between the end of its shard and the request for the next one.
        tasks = list(worker.tasks.values())
        for task in tasks[:-1]:
            yield from self._attempts.again(task)
        for task in tasks[-1:]:
            yield from self._attempts.lost(task, f"{how}; out of memory?")
        if self._attempts:
            self._grow(len(self._workers) + 1)
            self._give(self._workers[-1])

    def _stop(self) -> None:
        # All are asked before any is waited for, so that they share one grace period.
        for worker in self._workers:
            worker.process.terminate()
            worker.pipe.close()
        deadline = time.monotonic() + _GRACE
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()
        self._workers.clear()


def _work(pipe: Connection) -> None:
    """Main function of a worker process: run tasks until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # `_starting` cannot block it outside of the main thread
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    sending = threading.Lock()  # this thread and the committer send over one pipe, which would mix their messages
    last: Future[None] | None = None
    task: Work | None = None

    def send(number: int, event: Event | None) -> None:
        with sending:
            pipe.send((number, event))

    def finish(number: int, events: Iterator[Event]) -> None:
        for event in events:
            send(number, event)

    try:
        try:
            with ThreadPoolExecutor(1) as committer:
                while True:
                    task = given = pipe.recv()
                    events = perform(given)
                    for event in events:
                        send(given.number, event)
                        if isinstance(event, Written):
                            break
                    if last is not None:
                        last.result()  # at most one shard waits for the disk
                    last = committer.submit(finish, given.number, events)
                    send(given.number, None)
        except (EOFError, OSError):  # the parent has gone, and this thread is the first to notice it
            _leave()
    except SystemExit:  # raised between the opening of a file and the block that removes it, it leaves the file
        for path in own_partials(open_store(task.out).scratch) if task else ():
            path.unlink(missing_ok=True)
        raise


def _leave(*_: object) -> NoReturn:
    """End by an exception, so that the unfinished file is removed on the way out."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would interrupt the removal
    raise SystemExit(128 + signal.SIGTERM)


def _end_with_parent() -> None:
    """End with the parent, however it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    # A signal runs `_leave` in the main thread, whose unfinished file this thread cannot remove.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os._exit(1)


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """Start processes without importing the main module, without Ctrl-C, and with one BLAS thread each.

    Ctrl-C reaches the whole process group, but the parent has to end its workers in order. With a worker per core,
    NumPy must not start threads for all cores in each of them, which it does as it is imported.
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
