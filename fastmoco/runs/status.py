"""RUN/status.json: where a run stands, for monitors. Rank 0 writes it."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmoco.runs.environment import now
from fastmoco.runs.errors import Stopped
from fastmoco.runs.notify import Notifier
from shards.errors import UserError
from shards.interrupts import Interrupts, by_a_signal, may_be_torchruns
from shards.storage.files import write_whole

if TYPE_CHECKING:  # it loads torch, and `read` serves pages that are made without it
    from fastmoco.ranks.world import World

log = logging.getLogger(__name__)

FILE = "status.json"
EVERY = 5.0
"""Seconds between two writes. A change of state and a warning are written at once."""
PATIENCE = 10.0
"""Seconds for which a run's end waits for the last write: a server that hangs must not hold the process."""
FAILURE = "failed-rank.txt"
"""File by which another rank tells rank 0 why it failed."""
FAILURE_SECONDS = 2.0
"""How long rank 0 waits for it: both leave at about the same time."""
_KEPT = ("step", "total_steps", "epoch", "figures", "last_checkpoint")
_TEXT = 2000  # characters of a reason: a library's message may be pages long


class Status:
    """Writer of one run's status.json, in a thread of its own, so that a slow disk holds up no step.

    Args:
        folder: the run folder.
        ranks: number of ranks.
        before: values of an earlier status, which hold until the run is continued.
        notify: command that is told of warnings and of the end; see `notify`.
    """

    def __init__(self, folder: Path, ranks: int, before: Mapping[str, Any], notify: str | None = None) -> None:
        self._notifier = Notifier(notify, folder)
        self._path = folder / FILE
        self._lock, self._news = threading.Lock(), threading.Event()
        self._closed = self._failing = False
        self._values: dict[str, Any] = {
            "state": "starting", "reason": None, "step": 0, "total_steps": None, "epoch": None, "figures": {},
            "time_left_seconds": None, "last_checkpoint": None, "warnings": [], "pid": os.getpid(),
            "host": platform.node(), "ranks": ranks, "started": now(), "last_step": None, "updated": None,
            **{name: before[name] for name in _KEPT if name in before},
        }  # fmt: skip
        self._thread = threading.Thread(target=self._work, name="status", daemon=True)
        self._thread.start()

    def update(self, **values: Any) -> None:
        """Set values; they are written within seconds, a new state or other warnings at once."""
        with self._lock:
            self._values.update(values)
        if "state" in values or "warnings" in values:
            self._news.set()

    def __getitem__(self, name: str) -> Any:
        """The value of this name as it is now."""
        return self._values[name]

    def warned(self, message: str) -> None:
        """Tell the user's command of a new warning."""
        self._notifier.tell_soon("warning", self._copy(), message)

    def close(self, tell: bool) -> None:
        """Write the last values and end the thread; then, with `tell`, run the user's command."""
        self._closed = True
        self._news.set()
        self._thread.join(PATIENCE)
        if tell:
            self._notifier.tell(self["state"], self._copy(), self["reason"])

    def _copy(self) -> dict[str, Any]:
        with self._lock:
            return dict(self._values)

    def _work(self) -> None:
        while True:
            last = self._closed
            self._news.clear()
            self._write()
            if last:
                return
            self._news.wait(0 if self._closed else EVERY)

    def _write(self) -> None:
        with self._lock:
            self._values["updated"] = now()
            text = _text(self._values)
        try:
            write_whole(self._path, text)
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.warning("%s cannot be written (%s); training goes on", self._path, error.strerror or error)
            self._failing = True


_open: list[Status] = []  # the innermost last: one command may train within another, as the demo does


def update(**values: Any) -> None:
    """Set values of the status of the run that is open in this process, if there is one."""
    if _open:
        _open[-1].update(**values)


def add_figures(figures: Mapping[str, float | None]) -> None:
    """Add the newest figures; those of other names, such as the last probe's, stay."""
    if _open:
        set_figures({**_open[-1]["figures"], **figures})


def set_figures(figures: Mapping[str, float | None]) -> None:
    """Set the figures; others are of steps that were taken back."""
    finite = {name: value if value is not None and math.isfinite(value) else None for name, value in figures.items()}
    update(figures=finite)  # JSON has no NaN


def step_done(**values: Any) -> None:
    """`update` after a step, with which the run is running."""
    if _open:
        state = {"state": "running"} if _open[-1]["state"] == "starting" else {}
        _open[-1].update(last_step=now(), **values, **state)


def warned(message: str) -> None:
    """Tell the user's command of a new warning of the run that is open in this process."""
    if _open:
        _open[-1].warned(message)


@contextmanager
def reported(folder: Path, here: World, notify: str | None = None) -> Iterator[None]:
    """Keep the folder's status.json while the block runs, and run the command `notify`; on rank 0. All ranks call it.

    A command that ends before the run's first step, such as one whose settings are refused, leaves the status of a
    finished run as it was.
    """
    if not here.is_main:
        with _failure_left(folder, here):
            yield
        return
    _take_failure(folder)  # of an earlier run
    before = read(folder)
    status = Status(folder, here.size, before, notify)
    _open.append(status)
    try:
        yield
    except BaseException as error:
        state, reason = _ending(error, folder, here)
        status.update(state=state, reason=reason)
        raise
    else:
        if status["state"] != "stopped":  # by a callback, which is no error
            status.update(state="finished", reason=None, time_left_seconds=0.0)  # the last step's had a probe to come
    finally:
        _open.pop()
        began = status["last_step"] is not None
        # a finished run that was started again has no news, unless it was stopped or killed before it said so
        news = began or status["state"] != "finished" or before.get("state", "finished") != "finished"
        status.close(tell=news)
        if not began:
            _restore(folder, before, status)


def _ending(error: BaseException, folder: Path, here: World) -> tuple[str, str]:
    """State and reason of a run that `error` ended on rank 0."""
    if isinstance(error, Stopped):
        return "stopped", _reason(error)
    if by_a_signal(error):  # before the first step, from which on a stop is agreed on
        # torchrun ends the ranks as well when one has died, which is no stop: a cluster would repeat it for ever
        torchruns = Interrupts.current is not None and may_be_torchruns(Interrupts.current.number)
        died = here.heartbeat.died() if here.heartbeat and torchruns else []
        if not died:
            return "stopped", "interrupted"
        others = f"rank {died[0]} has ended before the first step, and torchrun ended the others; look at its output"
        return "failed", _take_failure(folder) or others
    return "failed", (_take_failure(folder, FAILURE_SECONDS) if _follows(error) else None) or _reason(error)


def read(folder: Path) -> dict[str, Any]:
    """The values in a folder's status.json; empty where there is no readable one."""
    with suppress(OSError, ValueError, RecursionError):
        values = json.loads((folder / FILE).read_bytes())
        if isinstance(values, dict) and isinstance(values.get("figures"), dict):
            return values
    return {}


def _restore(folder: Path, before: Mapping[str, Any], status: Status) -> None:
    """Put the earlier status of a finished run back, and leave nothing in a folder that is otherwise empty."""
    with suppress(OSError):
        if before.get("state") == "finished":
            write_whole(folder / FILE, _text(before))
        elif status["state"] == "failed" and {path.name for path in folder.iterdir()} <= {FILE, "lock"}:
            (folder / FILE).unlink()


@contextmanager
def _failure_left(folder: Path, here: World) -> Iterator[None]:
    """On a rank other than 0: leave the cause of its failure for rank 0, which only learns that it has failed."""
    try:
        yield
    except Exception as error:
        # an error of all ranks is rank 0's as well
        if not _follows(error) and (not isinstance(error, UserError) or error.one_rank):
            with suppress(OSError), open(folder / FAILURE, "x", encoding="utf-8") as file:  # the first one counts
                file.write(f"rank {here.rank} on {platform.node()}: {_reason(error)}")
        raise


def _take_failure(folder: Path, patience: float = 0.0) -> str | None:
    """The cause that another rank left, at the latest after `patience` seconds; its file is removed."""
    end = time.monotonic() + patience
    while True:
        with suppress(OSError, UnicodeDecodeError):
            text = (folder / FAILURE).read_text(encoding="utf-8")
            if text:
                (folder / FAILURE).unlink()
                return text[:_TEXT]
        if time.monotonic() >= end:
            return None
        time.sleep(0.1)


def _follows(error: BaseException) -> bool:
    """Whether an error is how a rank notices that another one has ended."""
    if isinstance(error, UserError):
        return error.consequence
    return type(error).__name__.startswith("Dist") or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def _text(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())[:_TEXT]
    if isinstance(error, UserError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
