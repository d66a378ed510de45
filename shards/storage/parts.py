"""Files that are being fetched: one process at a time holds one, and its end, however it ends, frees it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Generator, Iterable
from pathlib import Path


def write(descriptor: int, parts: Iterable[bytes]) -> str:
    """Write all bytes of a file; returns their SHA-256, hex. Raises OSError."""
    state, place = hashlib.sha256(), 0
    for part in parts:
        state.update(part)
        left = memoryview(part)
        while left:
            # The disk may take a part of the bytes only; once it is full, the next call says so.
            done = os.pwrite(descriptor, left, place)
            place += done
            left = left[done:]
    return state.hexdigest()


@contextlib.contextmanager
def held(path: Path, wait: bool) -> Generator[int | None, None, None]:
    """Descriptor of a file, locked; None if another process holds the lock and `wait` is False."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if not _is_at(descriptor, path):
                continue  # its previous holder renamed or removed it
            yield descriptor
            return
        except BlockingIOError:
            yield None
            return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def abandoned(part: Path) -> bool:
    """Whether no process holds the lock of a part."""
    descriptor = os.open(part, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(descriptor).st_size > 0  # an empty one has just been created
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
