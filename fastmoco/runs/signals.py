"""SIGTERM and SIGINT during a run."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def on_stop_signal(ask_to_stop: Callable[[], None]) -> Iterator[None]:
    """Call `ask_to_stop` on the first SIGTERM or SIGINT; a second one has its usual effect.

    Outside of the main thread, where Python allows no handlers, signals keep their usual effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = (signal.SIGTERM, signal.SIGINT)
    before = {name: signal.getsignal(name) for name in names}

    def restore() -> None:
        for name in names:
            signal.signal(name, before[name])

    def handle(number: int, _frame: object) -> None:
        log.warning("%s: finishing the step, then writing a checkpoint", signal.Signals(number).name)
        restore()
        ask_to_stop()

    for name in names:
        signal.signal(name, handle)
    try:
        yield
    finally:
        restore()
