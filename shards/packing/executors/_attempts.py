"""The queue of tasks, and the retries of those whose worker died."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from shards.packing.task import Event, Failed, Packed, Progress, Task

ATTEMPTS = 3  # per shard: a worker that dies (killed for memory, say) is replaced and its shard retried


class Attempts:
    """The tasks that are still to be packed.

    Not `storage.retry`: nothing is waited for, since a dead worker is replaced at once.

    Args:
        tasks: All tasks.
        workers: Tasks that run concurrently.
    """

    def __init__(self, tasks: Sequence[Task], workers: int) -> None:
        self._waiting = deque(tasks)
        self._tried: dict[int, int] = {}
        self._counted: dict[int, Progress] = {}
        self._in_a_row = 0
        self._most_in_a_row = ATTEMPTS * (workers + 1)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def next(self) -> Task | None:
        """The next task to start; None if none is waiting."""
        return self._waiting.popleft() if self._waiting else None

    def heard(self, task: Task, event: Event) -> None:
        """Record the report of a running task."""
        if isinstance(event, Progress):
            so_far = self._counted.get(task.shard, Progress(0, 0, 0))
            self._counted[task.shard] = so_far + event
        elif isinstance(event, Packed | Failed):
            self._counted.pop(task.shard, None)
            self._in_a_row = 0

    def lost(self, task: Task, cause: str) -> Iterator[Event]:
        """The worker of `task` died: take back its progress, and queue it again or report it as failed.

        If many workers die in a row and none of them packs a shard in between, the failure is fatal.
        """
        yield from self._take_back(task)
        tried = self._tried[task.shard] = self._tried.get(task.shard, 0) + 1
        self._in_a_row += 1
        if self._in_a_row > self._most_in_a_row:
            yield Failed(task.shard, f"{self._in_a_row} workers died in a row ({cause})", fatal=True)
        elif tried < ATTEMPTS:
            self._waiting.appendleft(task)
        else:
            yield Failed(task.shard, f"its worker died {tried} times ({cause})")

    def again(self, task: Task) -> Iterator[Event]:
        """The worker of `task` died while it worked on another one: take back its progress, and queue it again."""
        yield from self._take_back(task)
        self._waiting.appendleft(task)

    def _take_back(self, task: Task) -> Iterator[Event]:
        counted = self._counted.pop(task.shard, None)
        if counted is not None:
            yield -counted
