"""Warnings of a run: each once until it has passed, in the log, in metrics.jsonl and in status.json."""

from __future__ import annotations

import logging
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastmoco.runs import status
from fastmoco.runs.environment import now

log = logging.getLogger(__name__)


class Warnings:
    """The warnings of one run on one rank. Any thread may warn.

    Attributes:
        step: number of steps done, which the run keeps up to date.
    """

    def __init__(self) -> None:
        self.step = 0
        self._lock = threading.Lock()
        self._active: dict[str, dict[str, Any]] = {}
        self._unwritten: list[dict[str, Any]] = []

    def warn(self, name: str, message: str) -> None:
        """See the function of this name."""
        with self._lock:
            if name in self._active:
                return
            self._active[name] = {"name": name, "message": message, "step": self.step, "since": now()}
            self._unwritten.append({"step": self.step, "warning": name, "message": message})
            status.update(warnings=list(self._active.values()))
        log.warning("%s%s", _whose(), message)
        status.warned(message)

    def passed(self, name: str) -> None:
        """See the function of this name."""
        with self._lock:
            if self._active.pop(name, None) is None:
                return
            self._unwritten.append({"step": self.step, "warning": name, "passed": True})
            status.update(warnings=list(self._active.values()))
        log.info("%sthe warning %r has passed", _whose(), name)

    def unwritten(self) -> list[dict[str, Any]]:
        """Lines for metrics.jsonl since the last call, which the thread that writes the records fetches."""
        if not self._unwritten:  # the usual case at every step: without the lock
            return []
        with self._lock:
            lines, self._unwritten = self._unwritten, []
        return lines


def _whose() -> str:
    """On ranks other than 0, whose warnings are in the log alone, the rank and its host."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"rank {rank} on {platform.node()}: "


_open: list[Warnings] = []


@contextmanager
def collected() -> Iterator[Warnings]:
    """Collect the warnings of a run while the block runs."""
    _open.append(Warnings())
    try:
        yield _open[-1]
    finally:
        _open.pop()


def warn(name: str, message: str) -> None:
    """Warn of something that harms the run that is open in this process; without one, the log alone has it.

    Args:
        name: of the kind of trouble, in snake_case; the same name warns once until `passed` is called with it.
        message: one line: value, place, remedy.
    """
    if _open:
        _open[-1].warn(name, message)
    else:
        log.warning("%s", message)


def passed(name: str) -> None:
    """Say that what was warned of under this name is over; nothing where nothing was."""
    if _open:
        _open[-1].passed(name)
