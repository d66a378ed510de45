"""Locks of the kernel on a file. A process's end frees its lock, however it ends; over NFS so does its host's."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

_TURN = 0.2  # seconds between two attempts


class Held(Exception):
    """Another process holds the lock; the message is what that process wrote about itself."""


def this_process() -> str:
    """This process as others are told of it: `process 123 on HOST`."""
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextlib.contextmanager
def locked(path: Path, about: str, patience: float = 0.0, on_wait: Callable[[str], object] = str) -> Iterator[bool]:
    """Hold the lock of a file while the block runs; the file is removed after it.

    Args:
        path: The file; created if missing. Its folder exists.
        about: What other processes are told of this one.
        patience: Seconds for which to wait for another process that holds the lock.
        on_wait: Called once, with what that process says of itself, before such a wait.

    Yields:
        Whether the file system has locks. One without cannot exclude other processes.

    Raises:
        Held: Another process holds the lock.
        OSError: The file cannot be written.
    """
    end, waits = time.monotonic() + patience, False
    while True:
        try:
            file, works = _take(path)
            break
        except Held as held:
            if time.monotonic() >= end:
                raise
            if not waits:
                waits = True
                on_wait(str(held))
            time.sleep(_TURN)
    with file:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without the text
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"{about}\n".encode())
        try:
            yield works
        finally:
            # While it is locked: a process that opened it before notices in `_take` that it is gone. If the block has
            # removed it, the name may be another process's lock by now.
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                    path.unlink()


def _take(path: Path) -> tuple[TextIO, bool]:
    """The opened file, locked, and whether it could be."""
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (not "w": what the holder wrote must survive)
        try:
            # flock, not lockf, whose lock ends as soon as the process closes any other descriptor of the file.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                raise Held(_holder(file)) from None
        except OSError:
            return file, False
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                return file, True
        file.close()  # its holder has removed it since it was opened: the name is another file's, or free


def _holder(file: TextIO) -> str:
    """What the process that holds the lock wrote of itself, which it does just after it has taken it."""
    for pause in (0.0, 0.01, 0.1, 0.5):
        time.sleep(pause)
        file.seek(0)
        if text := file.read().strip():
            return text
    return "another process"
