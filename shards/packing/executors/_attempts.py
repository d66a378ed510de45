"""The queue of tasks, and the retries of those whose worker died."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from shards.packing.task import Done, Event, Failed, Progress, Work

ATTEMPTS = 3  # per shard: a worker that dies (killed for memory, say) is replaced and its shard retried


class Attempts:
    """The tasks that are still to be packed.

    Not `storage.retry`: nothing is waited for, since a dead worker is replaced at once.

    Args:
        tasks: All tasks.
        workers: Tasks that run concurrently.
    """

    def __init__(self, tasks: Sequence[Work], workers: int) -> None:
        self._waiting = deque(tasks)
        self._tried: dict[int, int] = {}
        self._counted: dict[int, Progress] = {}
        self._in_a_row = 0
        self._most_in_a_row = ATTEMPTS * (workers + 1)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def next(self) -> Work | None:
        """The next task to start; None if none is waiting."""
        return self._waiting.popleft() if self._waiting else None

    def heard(self, task: Work, event: Event) -> None:
        """Record the report of a running task."""
        if isinstance(event, Progress):
            so_far = self._counted.get(task.number, Progress(0, 0, 0))
            self._counted[task.number] = so_far + event
        elif isinstance(event, Done | Failed):
            self._counted.pop(task.number, None)
            self._in_a_row = 0

    def lost(self, task: Work, cause: str) -> Iterator[Event]:
        """The worker of `task` died: take back its progress, and queue it again or report it as failed.

        If many workers die in a row and none of them packs a shard in between, the failure is fatal.
        """
        yield from self._take_back(task)
        tried = self._tried[task.number] = self._tried.get(task.number, 0) + 1
        self._in_a_row += 1
        if self._in_a_row > self._most_in_a_row:
            yield Failed(task.number, f"{self._in_a_row} workers died in a row ({cause})", fatal=True)
        elif tried < ATTEMPTS:
            self._waiting.appendleft(task)
        else:
            yield Failed(task.number, f"its worker died {tried} times ({cause})")

    def again(self, task: Work) -> Iterator[Event]:
        """The worker of `task` died while it worked on another one: take back its progress, and queue it again."""
        yield from self._take_back(task)
        self._waiting.appendleft(task)

    def _take_back(self, task: Work) -> Iterator[Event]:
        counted = self._counted.pop(task.number, None)
        if counted is not None:
            yield -counted
