"""How long each rank waits for its data and computes by itself: what holds all of them up is warned of."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from fastmoco.ranks.world import World
from fastmoco.runs.warnings import passed, warn
from fastmoco.spans import span

Batch = TypeVar("Batch")

LEAST_SECONDS, LEAST_STEPS = 60.0, 50
"""What a judgment needs. Single steps differ by more than the bounds below: a file that is read again, a checkpoint."""
MOST_WAIT = 0.05
"""Share of the time that steps may wait for data. A loader that keeps up is below 1 %."""
SLOWER = 1.2
"""A rank that takes this many times as long as the others' median is slow; equal GPUs differ by a few percent."""
_COLUMNS = 3


class Tempo:
    """Seconds of one rank since the last log line. With each log line the ranks exchange them.

    Args:
        here: this rank.
        hosts: name of each rank's host.
    """

    def __init__(self, here: World, hosts: Sequence[str]) -> None:
        self._here, self._hosts = here, hosts
        self._waited = self._paused = 0.0
        self._since, self._exchanged_step = time.monotonic(), 0
        self._first = True
        self._clear()

    def _clear(self) -> None:
        self._seconds, self._steps = 0.0, 0
        self._sums = [[0.0] * _COLUMNS for _ in self._hosts]

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, with the wait for each measured."""
        source = iter(batches)
        while True:
            before = time.monotonic()
            try:
                with span("wait"):
                    batch = next(source)
            except StopIteration:
                return
            self._waited += time.monotonic() - before
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of a block, such as an evaluation."""
        before, waited = time.monotonic(), self._waited
        try:
            yield
        finally:  # also of one that failed
            self._paused += time.monotonic() - before
            self._waited = waited

    def rows(self, computed: tuple[float, int]) -> list[float]:
        """This rank's figures since the last call, in a list with zeros for the other ranks, which the ranks sum.

        Args:
            computed: seconds of this rank's own work, without waits for other ranks, and the steps they are of.
        """
        rows = [0.0] * _COLUMNS * self._here.size
        place = _COLUMNS * self._here.rank
        rows[place : place + _COLUMNS] = [self._waited, *computed]
        self._waited = 0.0
        return rows

    def judge(self, rows: Sequence[float], step: int) -> None:
        """Warn of ranks that hold up the others. Rank 0 calls it at each log line.

        Args:
            rows: the sum of all ranks' `rows`.
            step: number of steps done.
        """
        now = time.monotonic()
        seconds, steps = now - self._since - self._paused, step - self._exchanged_step
        self._since, self._exchanged_step, self._paused = now, step, 0.0
        if self._first:  # compiles, and fills caches
            self._first = False
            return
        self._seconds, self._steps = self._seconds + seconds, self._steps + steps
        for rank, sums in enumerate(self._sums):
            for column in range(_COLUMNS):
                sums[column] += rows[rank * _COLUMNS + column]
        if self._seconds >= LEAST_SECONDS and self._steps >= LEAST_STEPS:
            self._judge_waits()
            self._judge_ranks()
            self._clear()

    def _judge_waits(self) -> None:
        shares = [waited / self._seconds for waited, _, _ in self._sums]
        worst = max(range(len(shares)), key=shares.__getitem__)
        if shares[worst] <= MOST_WAIT:
            passed("data_wait")
            return
        of = f" on {self._name(worst)}" if len(shares) > 1 else ""
        warn(
            "data_wait",
            f"steps waited for images {100 * shares[worst]:.0f} % of the last {self._seconds:.0f} s{of}: reading or "
            "decoding is too slow; give more --threads, put the shards on a local disk, or pack with --resize",
        )

    def _judge_ranks(self) -> None:
        each = [seconds / steps if steps else None for _, seconds, steps in self._sums]
        times = [value for value in each if value is not None]
        if len(times) != len(each) or len(times) < 2:
            return
        slowest = max(range(len(times)), key=times.__getitem__)
        others = statistics.median(times[:slowest] + times[slowest + 1 :])
        if times[slowest] <= SLOWER * others:
            passed("slow_rank")
            return
        warn(
            "slow_rank",
            f"{self._name(slowest)} takes {1000 * times[slowest]:.0f} ms for what takes the other ranks "
            f"{1000 * others:.0f} ms (encoding the queries, over {self._steps} steps), and all wait for it; look for "
            "other programs there, and for a GPU that is throttled or of another kind",
        )

    def _name(self, rank: int) -> str:
        return f"rank {rank} on {self._hosts[rank]}"
