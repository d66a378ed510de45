"""Tasks that wait, and how often those were tried whose worker died."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from shards.packing.task import Event, Failed, Packed, Progress, Task

ATTEMPTS = 3  # a worker that dies (killed for memory, say) is replaced and its shard tried again


class Attempts:
    """What is still to be packed.

    Args:
        tasks: All tasks.
        workers: Tasks that run at once.
    """

    def __init__(self, tasks: Sequence[Task], workers: int) -> None:
        self._waiting = deque(tasks)
        self._tried: dict[int, int] = {}
        self._counted: dict[int, Progress] = {}
        self._in_a_row = 0
        self._bearable = ATTEMPTS * (workers + 1)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def next(self) -> Task | None:
        """A task to start; None where no more wait."""
        return self._waiting.popleft() if self._waiting else None

    def heard(self, task: Task, event: Event) -> None:
        """Note what a running task reported."""
        if isinstance(event, Progress):
            so_far = self._counted.get(task.shard, Progress(0, 0, 0))
            self._counted[task.shard] = so_far + event
        elif isinstance(event, Packed | Failed):
            self._counted.pop(task.shard, None)
            self._in_a_row = 0

    def lost(self, task: Task, cause: str) -> Iterator[Event]:
        """The worker of `task` is gone: its progress is taken back, and it waits again, or has failed.

        Where workers die one after another and none of them packs a shard in between, the failure is fatal.
        """
        yield from self._taken_back(task)
        tried = self._tried[task.shard] = self._tried.get(task.shard, 0) + 1
        self._in_a_row += 1
        if self._in_a_row > self._bearable:
            yield Failed(task.shard, f"{self._in_a_row} workers died one after another ({cause})", fatal=True)
        elif tried < ATTEMPTS:
            self._waiting.appendleft(task)
        else:
            yield Failed(task.shard, f"its worker died {tried} times ({cause})")

    def again(self, task: Task) -> Iterator[Event]:
        """The worker of `task` is gone by another's fault: its progress is taken back, and it waits again."""
        yield from self._taken_back(task)
        self._waiting.appendleft(task)

    def _taken_back(self, task: Task) -> Iterator[Event]:
        counted = self._counted.pop(task.shard, None)
        if counted is not None:
            yield -counted
