"""Mutual exclusion of packers on one output: a locked file in a folder, a lease object in an object store."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

from shards.errors import PackError
from shards.packing.plan import WORK
from shards.storage import locking
from shards.storage.base import Store
from shards.words import display

LOCK = f"{WORK}/lock"
RENEW = 15.0  # seconds between renewals of a lease; three may fail before it expires
EXPIRE = 60.0  # seconds without a renewal after which the holder of a lease counts as dead
_ATTEMPTS = 10  # to lock a file in a folder that others remove


@contextlib.contextmanager
def locked(store: Store) -> Generator[Callable[[], None], None, None]:
    """Lock a store against other packers.

    Yields:
        A function to call regularly. It raises PackError if another packer has taken over the store.

    Raises:
        HeldError: Another packer holds the store; the message gives process id and host.
        PackError: It cannot be written.
    """
    try:
        holding = _folder(store) if store.local else _lease(store)
        with holding as check:
            yield check
    except _Unwritable as error:
        cause = f"cannot write to --out {display(store.url)}: {error}"
        raise PackError(f"{cause}; name a folder that you may write to" if store.local else cause) from None


class _Unwritable(Exception):
    """The lock cannot be written."""


class HeldError(PackError):
    """Another packer holds the store."""


def _refuse(store: Store, holder: str) -> PackError:
    return HeldError(f"{display(store.url)} is being packed by {holder}; wait for it or end it")


@contextlib.contextmanager
def _folder(store: Store) -> Generator[Callable[[], None], None, None]:
    path = store.scratch / LOCK
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_if_empty, path.parent)
        try:
            for later in reversed(range(_ATTEMPTS)):
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(locking.locked(path, locking.this_process()))
                    break
                except (FileNotFoundError, FileExistsError):  # a packer that ended just now has removed the folder
                    if not later:
                        raise
        except locking.Held as held:
            raise _refuse(store, str(held)) from None
        except OSError as error:
            raise _Unwritable(error.strerror) from None
        yield lambda: None


def _remove_if_empty(folder: Path) -> None:
    """After the lock: it is not empty if the packing is unfinished, or if another packer has begun."""
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def _lease(store: Store) -> Generator[Callable[[], None], None, None]:
    """An object that only one packer can create, renewed while it is held.

    A lease that has not been renewed for `EXPIRE` seconds, or whose process on this machine has ended, is taken over.
    If two packers take it over at the same moment, both read it back, and the one that wrote first finds the other's.
    """
    lease = _Lease(store)
    try:
        lease.take()
    except OSError as error:
        raise _Unwritable(error.strerror) from None
    thread = threading.Thread(target=lease.renew, name="shards-lease", daemon=True)
    thread.start()
    try:
        yield lease.check
    finally:
        lease.ended.set()
        thread.join()
        with contextlib.suppress(OSError):  # else it expires
            if lease.holder() == lease.token:
                store.remove(LOCK)


class _Lease:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.token = secrets.token_hex(8)
        self.ended = threading.Event()
        self._renewals = 0
        self._lost = ""

    def take(self) -> None:
        """Acquire the lease; PackError if another packer holds it, OSError if the store cannot be written."""
        try:
            self.store.create(LOCK, self._text())
        except FileExistsError:
            found = self._read()
            # Our own token: the answer to a first request was lost, and its retry found the lease.
            if found.get("token") != self.token and not _is_dead(found) and self._renewed(found):
                raise _refuse(self.store, _name(found)) from None
            self.store.write(LOCK, self._text())
        # Read back: a store may ignore the condition of `create`, and two packers may take over the same dead lease.
        if self.holder() != self.token:
            raise _refuse(self.store, _name(self._read()))

    def renew(self) -> None:
        """Renew the lease until `ended` is set."""
        while not self.ended.wait(RENEW):
            with contextlib.suppress(OSError):  # unreachable for a moment: the next turn may succeed
                if self.holder() != self.token:
                    self._lost = _name(self._read())
                    return
                self.store.write(LOCK, self._text())

    def check(self) -> None:
        if self._lost:
            raise _refuse(
                self.store, f"{self._lost} as well, which took over while this process could not reach the store"
            )

    def holder(self) -> str:
        return str(self._read().get("token"))

    def _read(self) -> dict[str, object]:
        try:
            return dict(json.loads(self.store.read(LOCK)))
        except (FileNotFoundError, ValueError, TypeError):
            return {}

    def _renewed(self, before: dict[str, object]) -> bool:
        """Whether the holder renews the lease within `EXPIRE` seconds."""
        # Wait and compare, by this machine's clock: a time stamp in the lease would come from another machine's.
        end = time.monotonic() + EXPIRE
        while time.monotonic() < end:
            time.sleep(min(1.0, EXPIRE / 10))
            now = self._read()
            if now != before:
                return bool(now)
        return False

    def _text(self) -> bytes:
        self._renewals += 1  # a renewal has to change the content, by which `_renewed` notices it
        values = {"process": os.getpid(), "host": socket.gethostname(), "token": self.token, "renewals": self._renewals}
        return json.dumps(values).encode()


def _name(lease: dict[str, object]) -> str:
    return f"process {lease.get('process', '?')} on {lease.get('host', '?')}"


def _is_dead(lease: dict[str, object]) -> bool:
    """Whether the lease belongs to a process on this machine that has ended."""
    process = lease.get("process")
    if lease.get("host") != socket.gethostname() or not isinstance(process, int):
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
