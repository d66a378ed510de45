"""Packing by tasks on a Ray cluster; each streams its events back."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import ray
import ray.exceptions

from shards._software import made_by
from shards.errors import PackError
from shards.packing.executors._attempts import Attempts
from shards.packing.task import Event, Failed, Work, perform
from shards.pool import cores, keep_freed_memory
from shards.storage.places import is_url

_POLL = 0.5  # seconds after which the caller gets an empty event
_REPORT_EVERY = 1.0  # seconds between the progress reports of a task
_GRACE = 10.0  # seconds that a task has to remove its unfinished file
_STORE = 100 << 20  # bytes of a local Ray's object store; only events pass through it
_Place = TypeVar("_Place")


def run(tasks: Sequence[Work], workers: int) -> Generator[Event, None, None]:
    """Do tasks on the connected cluster. With `workers` 0, one task per core of the cluster runs at a time."""
    yield from _Cluster(tasks, workers).run()


@contextlib.contextmanager
def connected(workers: int, address: str | None) -> Iterator[None]:
    """Connect; an existing connection of the calling process is used and left open.

    Raises:
        PackError: No connection.
    """
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        _connect(workers, address)
        yield
    finally:
        ray.shutdown()


def _connect(workers: int, address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address is not None:
        try:
            if address != "auto":  # Ray itself would retry for minutes where nothing listens
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address=address, **quiet)
        except Exception as error:
            raise PackError(
                f"no connection to Ray at --ray-address {address} ({_first_line(error)}); give HOST:PORT, or auto,"
                " of a cluster that this machine is a node of"
            ) from error
        return
    limits: dict[str, Any] = {"num_cpus": workers or cores(), "num_gpus": 0, "object_store_memory": _STORE}
    # A Ray that is started here sends usage statistics unless this is set. The caller's environment is restored.
    before = os.environ.get("RAY_USAGE_STATS_ENABLED")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address="local", include_dashboard=False, **limits, **quiet)
    except Exception as error:
        remedy = "on a busy machine, run the same command again, or use"
        if "AF_UNIX" in str(error):
            remedy = "set RAY_TMPDIR to a folder with a shorter path, such as /tmp, or use"
        raise PackError(
            f"Ray cannot be started here ({_first_line(error)}); {remedy} --executor local or the --ray-address of a"
            " cluster"
        ) from error
    finally:
        if before is None:
            del os.environ["RAY_USAGE_STATS_ENABLED"]


class _Cluster:
    """Running tasks on the connected cluster, by the stream of their events."""

    def __init__(self, tasks: Sequence[Work], workers: int) -> None:
        self._attempts = Attempts(tasks, workers or cores())
        self._workers = workers
        self._running: dict[Any, Work] = {}
        # `Attempts` retries, not Ray, which requires that a repeated task yields the same values.
        options: dict[str, Any] = {
            "num_cpus": 1,
            "max_retries": 0,
            "num_returns": "streaming",
            "scheduling_strategy": "SPREAD",
        }
        self._remote = ray.remote(**options)(_pack)

    def run(self) -> Generator[Event, None, None]:
        try:
            self._fill()
            while self._running:
                for stream in self._ready():
                    yield from self._hear(stream)
                self._fill()
                yield Event()
        finally:
            self._stop()

    def _fill(self) -> None:
        """Start as many tasks as may run concurrently; the cluster may have grown or shrunk."""
        limit = self._workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        while len(self._running) < limit and (task := self._attempts.next()) is not None:
            sent = replace(task, src=_absolute(task.src), out=_absolute(task.out))
            self._running[self._remote.remote(sent, made_by(*task.packages))] = task

    def _ready(self) -> list[Any]:
        """Streams with an event; waits briefly for the first one."""
        streams = list(self._running)
        ready, _ = ray.wait(streams, num_returns=1, timeout=_POLL)
        return ray.wait(streams, num_returns=len(streams), timeout=0)[0] if ready else []

    def _hear(self, stream: Any) -> Iterator[Event]:
        """One event of a task, its end, or its death."""
        task = self._running[stream]
        try:
            event: Any = ray.get(next(stream))
        except StopIteration:
            del self._running[stream]
        except ray.exceptions.RayError as error:
            del self._running[stream]
            yield from self._attempts.lost(task, f"{type(error).__name__}: {_first_line(error)}")
        else:
            self._attempts.heard(task, event)
            yield event

    def _stop(self) -> None:
        """End running tasks: first by an exception, so that a task removes its unfinished file, then by force."""
        for stream in self._running:
            ray.cancel(stream)
        deadline = time.monotonic() + _GRACE
        while self._running and time.monotonic() < deadline:
            for stream in self._ready():
                for _ in self._hear(stream):
                    pass
        for stream in self._running:
            ray.cancel(stream, force=True)


def _pack(task: Work, software: dict[str, str]) -> Iterator[Event]:
    """Main function of a task; failures name its node."""
    node = socket.gethostname()
    # Another libjpeg-turbo writes other bytes, and a shard must not depend on the node that packs it.
    here = made_by(*task.packages)
    if here != software:
        yield Failed(task.number, f"{node} has {here}, the driver {software}: the bytes might differ", fatal=True)
        return
    keep_freed_memory()
    for event in perform(task, _REPORT_EVERY):
        yield replace(event, cause=f"{event.cause} (on {node})") if isinstance(event, Failed) else event


def _absolute(place: _Place) -> _Place:
    """Absolute path: workers on other nodes have other working directories."""
    return place if is_url(place) else type(place)(os.path.abspath(place))  # type: ignore[call-arg, arg-type]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # a task's exception arrives as a traceback, whose last line is the message
    return lines[-1] if isinstance(error, ray.exceptions.RayTaskError) else lines[0]
