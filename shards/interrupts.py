"""Ctrl-C ends a command at any moment: while modules are imported, while it works, while Python shuts down."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class CtrlC:
    """The handling of SIGINT in a command.

    By itself Python raises KeyboardInterrupt wherever the main thread is. That is right for work, which cleans up.
    During an import it is wrong: torch would go on without NumPy, other modules would raise errors of their own. There
    is nothing to clean up then, so the process ends at once.

    Args:
        line: What to print when it does; empty for nothing.

    Attributes:
        pressed: Whether KeyboardInterrupt was raised: an exception of another type may have come of it.
    """

    def __init__(self, line: str) -> None:
        self.pressed = False
        self._line = line
        self._unraisable = sys.unraisablehook

    def watch(self) -> None:
        """Begin, unless SIGINT is ignored, as it is in a shell's background job."""
        if self._set(self._handle):
            sys.unraisablehook = self._not_raised

    def end(self, code: int) -> None:
        """From now on Ctrl-C ends the process at once with `code`: it has nothing left to do but shut down."""
        self._set(lambda *_: os._exit(code))

    def _set(self, handler: Callable[[int, FrameType | None], object]) -> bool:
        if threading.current_thread() is not threading.main_thread():
            return False
        if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
            return False
        signal.signal(signal.SIGINT, handler)
        return True

    def _handle(self, _number: int, frame: FrameType | None) -> None:
        self.pressed = True
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, self._line.encode())
                os._exit(INTERRUPTED)
            frame = frame.f_back
        raise KeyboardInterrupt

    def _not_raised(self, found: Any) -> None:
        """Raise again what was raised in a destructor or callback, where Python prints and forgets it."""
        if issubclass(found.exc_type, KeyboardInterrupt):
            # a moment later, as Python forgets what this hook raises as well
            threading.Timer(0.05, _thread.interrupt_main).start()
        else:
            self._unraisable(found)
