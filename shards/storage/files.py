"""Files that are complete or absent: written under a temporary name, synced, renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"
PARTIAL_SUFFIX = r"(\.[0-9a-f]+-[0-9a-f]+)?\.partial"  # regular expression of what `partial` appends
_TOKEN = secrets.token_hex(4)  # nodes that share a folder may have processes of equal number
_CHUNK = 1 << 22
_FAILED_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # the system reports these without a name


def partial(path: Path) -> Path:
    """Name under which this process writes `path` until it is complete.

    The name is unique to the process, so that a worker that outlives its parent for a moment, or a task on a lost
    node, never writes into the file of its successor. Both write the same bytes, so either may be renamed last.
    """
    return path.with_name(f"{path.name}.{os.getpid():x}-{_TOKEN}{PARTIAL}")


def own_partials(folder: Path) -> list[Path]:
    """This process's unfinished files in `folder`."""
    return list(folder.glob(f"*.{os.getpid():x}-{_TOKEN}{PARTIAL}"))


def sweep(folder: Path) -> list[Path]:
    """Remove the unfinished files that other processes left in a folder; the caller knows that they have ended.

    Returns:
        The files that were there.
    """
    found = [
        path
        for path in folder.glob(f"*{PARTIAL}")
        if re.fullmatch(f".+{PARTIAL_SUFFIX}", path.name) and not path.is_dir()
    ]
    mine = set(own_partials(folder))
    left = [path for path in found if path not in mine]
    for path in left:
        with contextlib.suppress(OSError):  # of a read-only file system, which the first write names
            path.unlink()
    return left


def sync(path: Path) -> None:
    """Make a file's content durable."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the renames in `folder` durable, if the file system supports it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def target_of(path: Path) -> Path:
    """The file that a link leads to, which is written in its place; any other path unchanged."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _not_through_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file that is complete or absent: under its partial name, synced, then renamed to `path`.

    An exception in the block leaves `path` unchanged and removes the partial file. A link is followed.

    Args:
        path: The file; its folder exists.

    Raises:
        OSError: It cannot be written, or is a device or a pipe; the error names `path`, not the partial file.
    """
    target = target_of(path)
    with contextlib.suppress(FileNotFoundError):
        mode = target.stat().st_mode  # one question: between two of them others may remove the file
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # the rename would replace /dev/null by a file
            raise OSError(errno.EINVAL, "not a regular file", str(path))
    aside = partial(target)
    try:
        with open(aside, "wb", opener=_not_through_links) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, target)
    except BaseException as error:  # Ctrl-C and a worker's SystemExit, too, must leave no file
        with contextlib.suppress(OSError):
            aside.unlink()
        unnamed = type(error) is OSError and error.filename is None and error.errno in _FAILED_WRITES
        if isinstance(error, OSError) and (unnamed or error.filename == str(aside)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    sync_folder(target.parent)


def append_whole(descriptor: int, data: bytes) -> None:
    """Append to an open file all of `data` or, after an error, nothing.

    Args:
        descriptor: Opened with O_APPEND.
        data: What to append.

    Raises:
        OSError: It cannot be written.
    """
    size = os.fstat(descriptor).st_size
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]  # a disk that is nearly full takes the first part
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` as a `whole_file`: after a crash, `path` holds either its old content or `data`."""
    with whole_file(path) as file:
        file.write(data)


def sha256(file: BinaryIO) -> str:
    """SHA-256 of the rest of a file, hex; releases the GIL."""
    state = hashlib.sha256()  # hashlib.file_digest needs Python 3.11
    while chunk := file.read(_CHUNK):
        state.update(chunk)
    return state.hexdigest()
