"""A signal ends a command at any moment: while modules are imported, while it works, while Python shuts down."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""Signals that ask a process to end: of a terminal, a scheduler, a terminal that is closed, a scheduler's warning."""
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def ordered_exit_code(number: int) -> int:
    """The exit code after a signal: 128 + its number, as shells have it.

    torchrun takes every other code than 0 for a failure and starts the ranks again, which must not undo an ordered
    stop. Its own code tells of the signal that it got itself.
    """
    return 0 if "TORCHELASTIC_RESTART_COUNT" in os.environ else 128 + number


def may_be_torchruns(number: int) -> bool:
    """Whether torchrun may have sent a signal because another rank has failed, whose error is the one to read."""
    return number == signal.SIGTERM and "TORCHELASTIC_RESTART_COUNT" in os.environ


class Interrupts:
    """The handling of `SIGNALS` in a command: the first of them raises KeyboardInterrupt in the main thread.

    That is right for work, which cleans up. During an import it is wrong: torch would go on without NumPy, other
    modules would raise errors of their own. There is nothing to clean up then, so the process ends at once.

    Args:
        line: What to print when it does; empty for nothing.

    Attributes:
        number: Of the signal for which KeyboardInterrupt was raised, or 0: an exception of another type may have come
            of it.
    """

    current: Interrupts | None = None

    def __init__(self, line: str) -> None:
        self.number = 0
        self.stopped = False
        self._line = line
        self._unraisable = sys.unraisablehook

    def watch(self) -> None:
        """Begin, but for signals that are ignored, as SIGINT is in a shell's background job and SIGHUP by nohup."""
        if self._set(self._handle):
            sys.unraisablehook = self._not_raised
            Interrupts.current = self

    def leave(self) -> None:
        """From now on a signal ends the process at once: it says what ended it, or waits for others to say it."""
        if not self.stopped:
            self._set(lambda number, _: os._exit(ordered_exit_code(number)))

    def end(self, code: int) -> None:
        """From now on a signal ends the process at once with `code`: it has nothing left to do but shut down."""
        self._set(lambda *_: os._exit(code))

    def _set(self, handler: Callable[[int, FrameType | None], object]) -> bool:
        if threading.current_thread() is not threading.main_thread():
            return False
        handled = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
        for number in handled:
            signal.signal(number, handler)
        return bool(handled)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.stopped:
            return
        again, self.number = self.number, self.number or number
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                if not may_be_torchruns(number):
                    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, self._line.encode())
                os._exit(ordered_exit_code(number))
            frame = frame.f_back
        # a scheduler sends several, and cleaning up is to end; a user who presses Ctrl-C again does not want to wait
        if not again or number == signal.SIGINT:
            raise KeyboardInterrupt(signal.Signals(number).name)

    def _not_raised(self, found: Any) -> None:
        """Raise again what was raised in a destructor or callback, where Python prints and forgets it."""
        if issubclass(found.exc_type, KeyboardInterrupt):
            # a moment later, as Python forgets what this hook raises as well
            threading.Timer(0.05, _thread.interrupt_main).start()
        else:
            self._unraisable(found)


def by_a_signal(error: BaseException) -> bool:
    """Whether a signal ended the work that raised `error`, which may be of another type: see `Interrupts.number`."""
    return isinstance(error, KeyboardInterrupt) or (Interrupts.current is not None and Interrupts.current.number > 0)


def after_a_stop() -> None:
    """Let the command that runs in this process ignore signals: its work has stopped in order, and it ends."""
    if Interrupts.current is not None:
        Interrupts.current.stopped = True
