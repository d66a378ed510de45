"""Files that are whole or absent: written under a partial name, synced, renamed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"
PARTIAL_SUFFIX = r"(\.[0-9a-f]+-[0-9a-f]+)?\.partial"  # regular expression of what `partial` appends
_TOKEN = secrets.token_hex(4)
_CHUNK = 1 << 22


def partial(path: Path) -> Path:
    """Name under which this process writes `path` until it is whole.

    It is the process's own: a worker that outlives its parent by a moment, or a task on a node that was given up,
    and its successor never write into one file. What they write is the same, so either may be renamed last.
    """
    return path.with_name(f"{path.name}.{os.getpid():x}-{_TOKEN}{PARTIAL}")


def own_partials(folder: Path) -> list[Path]:
    """What this process has half written in `folder`."""
    return list(folder.glob(f"*.{os.getpid():x}-{_TOKEN}{PARTIAL}"))


def sync(path: Path) -> None:
    """Make a file's content durable."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the renames in `folder` durable, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file that is whole or absent: under its partial name, synced, then renamed over `path`.

    An exception in the block leaves `path` as it was and removes what was written.

    Args:
        path: The file; its folder is there.

    Raises:
        OSError: It cannot be written; the error names `path`, not the partial file.
    """
    aside = partial(path)
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        if isinstance(error, OSError) and error.filename == str(aside):
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    sync_folder(path.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` as a `whole_file`: after a crash `path` holds what it held before, or `data`."""
    with whole_file(path) as file:
        file.write(data)


def sha256(file: BinaryIO) -> str:
    """SHA-256 of a file from where it stands, hex; the GIL is free meanwhile."""
    state = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        state.update(chunk)
    return state.hexdigest()
