"""Signals that ask a run to stop: SIGTERM, SIGINT, SIGHUP, SIGUSR1."""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shards.interrupts import SIGNALS, after_a_stop

log = logging.getLogger(__name__)

AT_ONCE = 3
"""How often Ctrl-C is pressed to end without a checkpoint."""
AGENTS_APART = 5.0
"""Seconds within which all agents notice a node that comes: each asks for them once a second."""
_LOOK = 5.0  # seconds
_END = b"\0"  # in the pipe of signals' numbers, none of which is 0


class StopRequest:
    """Whether this process was asked to stop.

    Attributes:
        number: Of the first signal that came; 0 if none did.
    """

    def __init__(self) -> None:
        self.number = 0
        self._act: Callable[[], None] | None = None

    def ask(self, number: int, _frame: object = None) -> None:
        """The handler of the signals, which Python calls in the main thread."""
        self.number = self.number or number
        act, self._act = self._act, None  # once: a second signal must not interrupt it
        if act is not None:
            act()

    def await_agent(self) -> None:
        """Wait for a moment, where several agents of torchrun run the ranks, for this rank's to ask it to stop as well.

        When a node comes, each agent that notices stops its ranks and starts them again with the new ones. A rank that
        ended of itself meanwhile, as all have agreed to stop, would be finished for an agent that has yet to notice.
        """
        end = time.monotonic() + AGENTS_APART
        while int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1 and not self.number and time.monotonic() < end:
            time.sleep(0.05)

    @contextmanager
    def acting(self, act: Callable[[], None]) -> Iterator[None]:
        """Call `act` as soon as a signal comes while the block runs, in its place; also if one came before."""
        self._act = act
        try:
            if self.number:
                self.ask(self.number)
            yield
        finally:
            self._act = None


_open: list[tuple[StopRequest, Callable[[], None]]] = []


@contextmanager
def agreed_by(request: StopRequest, agree: Callable[[], None]) -> Iterator[None]:
    """Let long work of the block ask for a stop, and call `agree` where all ranks can leave it."""
    _open.append((request, agree))
    try:
        yield
    finally:
        _open.pop()


def stop_is_asked() -> bool:
    """Whether the run that is open was asked to stop on this rank: long work ends then, to call `agree_on_stop`."""
    return bool(_open) and _open[-1][0].number > 0


def agree_on_stop() -> None:
    """Leave long work on all ranks, which call it, if one was asked to stop: what a rank did not finish is not used.

    Raises:
        Stopped: one was, and the state is saved.
    """
    if _open:
        _open[-1][1]()


@contextmanager
def stop_signals(lost: Callable[[], str], look: Callable[[], None] = lambda: None) -> Iterator[StopRequest]:
    """Notice the signals while the block runs. None of them ends the process: that is left to who asks the request.

    Later signals are ignored with a line, but for the third Ctrl-C, which ends the process at once. Once a stop was
    asked for, a command ignores signals after the block as well: nothing is left to be done but to end.

    A signal that is ignored when the block begins, as by nohup, stays ignored. Outside of the main thread, where Python
    allows no handlers, signals keep their usual effect.

    Args:
        lost: Says what an end without a checkpoint loses.
        look: Called in a thread every few seconds while no signal comes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    listener = threading.Thread(target=_listen, args=(read_end, lost, look), name="signals", daemon=True)
    listener.start()
    # Python's handlers wait for the main thread, which may be in C code for minutes; what it writes here does not
    wakeup = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in handled:
        signal.signal(number, request.ask)
    try:
        yield request
    finally:
        if request.number:
            after_a_stop()
        for number in handled:
            signal.signal(number, before[number])
        signal.set_wakeup_fd(wakeup)
        os.write(write_end, _END)
        listener.join()
        os.close(write_end)
        os.close(read_end)


def _listen(read_end: int, lost: Callable[[], str], look: Callable[[], None]) -> None:
    """Say what comes of each signal."""
    came: list[int] = []
    # all ranks usually get the signal, and one line is enough; the run's last one names it whichever rank got it
    say = log.warning if os.environ.get("RANK", "0") == "0" else log.debug
    while True:
        if not select.select([read_end], [], [], _LOOK)[0]:
            look()
            continue
        byte = os.read(read_end, 1)
        if byte == _END:
            return
        if byte[0] not in SIGNALS:
            continue
        number, name = byte[0], signal.Signals(byte[0]).name
        came.append(number)
        if came.count(signal.SIGINT) == AT_ONCE:
            log.warning("%s for the third time: ending at once; %s", name, lost())
            os._exit(128 + number)
        if len(came) == 1:
            say("%s: finishing the step, then writing a checkpoint", name)
        elif number == signal.SIGINT and signal.SIGINT in came[:-1]:
            say("%s again: the checkpoint is written first; once more ends at once, and %s", name, lost())
        elif len(came) == 2:
            say("%s: the run is stopping already; the checkpoint is written first", name)
