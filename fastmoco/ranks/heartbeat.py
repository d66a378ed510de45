"""A heartbeat of each rank over the group's store, by which the ranks that wait name the one that is missing."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from shards.errors import UserError
from shards.interrupts import by_a_signal
from shards.words import duration

log = logging.getLogger(__name__)

_EVERY = 1.0
"""Seconds between two beats: 256 ranks write 256 lines of 200 bytes a second, a hundredth of what the store takes."""
_FRAMES = 3
WAITS, STEPS, EVALUATES, ASKED = "waited for the other ranks", "made the next step", "evaluated", "was asked to end"
"""What a rank does, in the past, as it is told once it is missing."""


class StalledError(UserError, RuntimeError):
    """A rank did not come within --rank-timeout. The message says which, where it was last, and where this one is."""

    exit_code = 1


@dataclass(frozen=True)
class Beat:
    """What a rank last said of itself.

    Attributes:
        count: Number of the beat.
        host: Its machine.
        step: Steps that it has done.
        doing: What its main thread does.
        votes: Agreements that it has come to.
        still: Seconds for which the main thread has not moved on.
        time: When, in seconds since 1970.
        stack: Innermost calls of the main thread if it has not moved on for long.
    """

    count: int
    host: str
    step: int
    doing: str
    votes: int
    still: float
    time: float
    stack: str = ""


class Heartbeat:
    """This rank's heartbeat, in a daemon thread: it beats as long as the process runs, whatever its main thread does.

    The store is torchrun's own, which all nodes reach. It is asked through a connection of its own, as another thread's
    wait in the store must not hold up the beats; no GPU is touched.

    Args:
        store: Of the process group.
        rank: This rank.
        size: Number of ranks.
        timeout: How long a rank is waited for.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        self._store, self._rank, self._size, self.bound = store.clone(), rank, size, timeout.total_seconds()
        self.say: Callable[[str], None] = log.warning
        self.step, self._votes, self._doing, self._moved = 0, 0, "started", time.monotonic()
        self._main = threading.get_ident()
        self._said = 0.0
        self._count, self._armed, self._ended = 0, -1.0, threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def does(self, what: str, step: int, votes: int = 0) -> None:
        """Note what the main thread does from now on, and after how many steps."""
        self.step, self._votes, self._doing, self._moved = step, self._votes + votes, what, time.monotonic()

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join(2 * _EVERY)
        faulthandler.cancel_dump_traceback_later()

    def died(self) -> list[int]:
        """The other ranks that have ended, and not by a signal that asked them to; it waits for two beats."""
        try:
            silent, beats = self._silent()
        except RuntimeError:  # the store is gone, and with it what they have said
            return []
        return [rank for rank in silent if (beat := beats[rank]) is None or beat.doing != ASKED]

    def _silent(self) -> tuple[list[int], dict[int, Beat | None]]:
        """The other ranks that do not beat, and the last beat of each."""
        first = self._beats()
        time.sleep(2.5 * self._interval)
        beats = self._beats()
        return [rank for rank, beat in beats.items() if not beat or beat == first[rank]], beats

    def missing(self) -> str:
        """Which ranks are waited for: those that have come to fewer agreements, and those that do not beat."""
        silent, beats = self._silent()
        most = max([self._votes, *(beat.votes for beat in beats.values() if beat)])
        late = [rank for rank, beat in beats.items() if beat and beat.votes < most and rank not in silent]
        named = [self._named(rank, beats[rank], rank in silent) for rank in silent or late]
        shown = "; ".join(named[:4]) + (f"; and {len(named) - 4} more" if len(named) > 4 else "")
        return shown

    def stalled(self, error: BaseException) -> StalledError:
        """The error of a rank whose wait is over its bound.

        Args:
            error: What torch raised.
        """
        calls = [call for call in traceback.extract_tb(error.__traceback__) if "/torch/" not in call.filename]
        return StalledError(
            f"waited {duration(self.bound)} (--rank-timeout) for {self.missing() or 'another rank'}; this rank waited "
            f"in {_in_words(calls)}. Look at that process and its machine, and run the same command again"
        )

    def _named(self, rank: int, beat: Beat | None, silent: bool) -> str:
        if beat is None:
            return f"rank {rank}, of which nothing is known"
        ago = duration(max(0.0, time.time() - beat.time) + beat.still)
        text = (
            f"rank {rank} on {beat.host}, which {beat.doing} after step {beat.step} and was last seen to move {ago} ago"
        )
        if silent:
            return f"{text}; its process does not answer (stopped, swapped out, or its machine is gone)"
        return f"{text}, in {beat.stack}" if beat.stack else text

    @property
    def _interval(self) -> float:
        return min(_EVERY, self.bound / 10)

    def _beats(self) -> dict[int, Beat | None]:
        """The last beat of each other rank."""
        others = [rank for rank in range(self._size) if rank != self._rank]
        known = [rank for rank in others if self._store.check([f"beat/{rank}"])]
        texts = dict(zip(known, self._store.multi_get([f"beat/{rank}" for rank in known]), strict=True))
        return {rank: _read(texts[rank]) if rank in texts else None for rank in others}

    def _run(self) -> None:
        try:
            while True:
                self._beat()
                self._arm()
                self._look()
                if self._ended.wait(self._interval):
                    return
        except RuntimeError as error:  # the store is gone with its node, which ends the group
            log.debug("no more heartbeats: %s", error)

    def _beat(self) -> None:
        self._count += 1
        still = time.monotonic() - self._moved
        stack = innermost(self._main) if still > self.bound / 4 else ""
        beat = Beat(self._count, platform.node(), self.step, self._doing, self._votes, still, time.time(), stack)
        self._store.set(f"beat/{self._rank}", json.dumps(asdict(beat)))

    def _arm(self) -> None:
        """Let the stacks of all threads go to stderr if this thread cannot run, as while C code hangs with the GIL."""
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # stderr is closed
            faulthandler.dump_traceback_later(0.75 * self.bound)

    def _look(self) -> None:
        """On rank 0, say at half the bound who is waited for."""
        still = time.monotonic() - self._moved
        if self._rank or self._moved <= self._said or self._doing == EVALUATES or still < self.bound / 2:
            return
        self._said = self._moved
        if missing := self.missing():
            self.say(f"waiting for {duration(still)} for {missing}; the run ends after {duration(self.bound)}")


def innermost(thread: int) -> str:
    """The innermost calls of a thread, the last one first: `loop.py:31 save, run.py:7 step`."""
    frame = sys._current_frames().get(thread)
    return _in_words(traceback.extract_stack(frame)) if frame else ""


def _in_words(calls: Sequence[traceback.FrameSummary]) -> str:
    last = reversed(calls[-_FRAMES:])
    return ", ".join(f"{call.filename.rpartition('/')[2]}:{call.lineno} {call.name}" for call in last)


def _read(text: bytes) -> Beat:
    values: dict[str, Any] = json.loads(text)
    return Beat(**{field.name: values[field.name] for field in fields(Beat)})


@contextmanager
def beating(store: dist.Store, rank: int, size: int, timeout: timedelta) -> Iterator[Heartbeat]:
    """A heartbeat while the block runs; the last one tells whether a signal ended it."""
    heartbeat = Heartbeat(store, rank, size, timeout)
    try:
        yield heartbeat
    except BaseException as error:
        heartbeat.close()
        if by_a_signal(error):
            heartbeat.does(ASKED, heartbeat.step)
            with contextlib.suppress(RuntimeError):  # the store is gone
                heartbeat._beat()
        raise
    heartbeat.close()
