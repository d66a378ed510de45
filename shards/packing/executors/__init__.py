"""Executors: shards are packed in this process, in a pool of processes, or on a Ray cluster.

An executor accepts tasks, yields `Progress` while they run, and `Done` or `Failed` for each of them, in any order. A
shard's bytes depend only on its task, so all executors produce the same set.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from shards.errors import PackError
from shards.packing.task import Event, Work, Written, perform
from shards.pool import cores


def require(executor: str, ray_address: str | None) -> None:
    """Raise PackError if the executor cannot be used here; called before the work of planning."""
    if executor != "ray":
        if ray_address is not None:
            raise PackError(f"--ray-address {ray_address} is for --executor ray, not for --executor {executor}")
        return
    if ray_address is not None and ray_address.startswith("ray://"):
        raise PackError(
            f"--ray-address {ray_address} is an address of Ray's client; run this on a node of the cluster (or with"
            " `ray job submit`) and give HOST:PORT, or auto"
        )
    if ray_address is not None and ray_address != "auto" and not re.fullmatch(r"[^/]+:[0-9]{1,5}", ray_address):
        raise PackError(f"--ray-address {ray_address} is no address; give HOST:PORT, or auto on a node of the cluster")
    if importlib.util.find_spec("ray") is None:
        raise PackError("--executor ray needs Ray, which is not installed; pip install 'fastmoco[ray]'")


Run = Callable[[Sequence[Work]], Generator[Event, None, None]]


@contextlib.contextmanager
def opened(workers: int = 0, executor: str = "local", ray_address: str | None = None) -> Iterator[Run]:
    """Yield a function that does tasks. Closing its generator ends all workers, which remove their unfinished files.

    The first processes of a pool are started here, so that they start up while the tasks are being made.

    Args:
        workers: Shards packed concurrently; 0: one per core of this machine, or of the Ray cluster.
        executor: `local`: in this process (for one worker or a single task), else in a pool of processes. Or `ray`.
        ray_address: Address of a Ray cluster; None starts Ray on this machine.

    Raises:
        PackError: From the function's generator: no connection to Ray.
    """
    if executor == "ray":
        from shards.packing.executors import _ray

        with contextlib.ExitStack() as connection:
            connected = False

            def on_cluster(tasks: Sequence[Work]) -> Generator[Event, None, None]:
                nonlocal connected
                if not connected:  # not before there is work, as it takes seconds
                    connection.enter_context(_ray.connected(workers, ray_address))
                    connected = True
                yield from _ray.run(tasks, workers)

            yield on_cluster
        return
    workers = workers or cores()
    if workers == 1:
        yield _here
        return
    from shards.packing.executors._pool import Pool

    with Pool(workers) as pool:
        yield lambda tasks: pool.run(tasks) if len(tasks) > 1 else _here(tasks)


def _here(tasks: Sequence[Work]) -> Generator[Event, None, None]:
    """Pack in this process. A thread waits for the disk to take one shard while the next one is written."""
    with ThreadPoolExecutor(1) as committer:
        last: Future[list[Event]] | None = None
        for task in tasks:
            events = perform(task)
            for event in events:
                yield event
                if isinstance(event, Written):
                    break
            if last is not None:  # one shard at a time waits for the disk, so that two are unfinished at most
                yield from last.result()
            last = committer.submit(list, events)
        if last is not None:
            yield from last.result()
