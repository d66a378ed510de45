"""The bytes of an image, wherever it lies: a file, an object at a URL, a member of a tar."""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from shards.encode import Rejected
from shards.options import is_url
from shards.places import joined, remote
from shards.plan import Entry

MAX_FILE = 1 << 30  # bytes; a larger file is no photograph
_THREADS = 16  # images that are fetched from URLs at once, by each worker
_AHEAD = 32  # and that are held before they are used
# One file's own fault: it is left out. Other errors (a share that went away, no descriptors) fail the shard.
_FILE_ERRNOS = frozenset(
    (
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EIO,
    )
)
_PASSING_STATUS = (408, 429)  # HTTP: time-out, too many requests; other 4xx are the file's own


def fetch(root: str, entry: Entry) -> bytes:
    """All bytes of an image.

    Args:
        root: What relative paths are relative to, a local folder or a URL.
        entry: The image.

    Raises:
        Rejected: The fault is the image's own: it is missing, cannot be read, is too large or cut off.
        OSError: Something else is wrong, for example the whole source is gone.
    """
    _check_size(entry.size)
    path = os.fsdecode(entry.path)
    place = joined(root, path)
    data = _from_url(place, entry) if is_url(place) else _from_file(root, place, entry)
    if entry.member and len(data) < entry.size:
        raise Rejected(f"truncated: {len(data):,} of {entry.size:,} bytes are in the tar")
    return data


def fetch_each(root: str, entries: Iterable[Entry]) -> Iterator[tuple[Entry, bytes | Rejected]]:
    """Entries in their order, each with its bytes or the reason to leave it out.

    Images at URLs are fetched ahead by several threads, files by the caller.

    Raises:
        OSError: See `fetch`.
    """
    with contextlib.ExitStack() as stack:
        pool: ThreadPoolExecutor | None = None
        waiting: deque[tuple[Entry, Future[bytes | Rejected]]] = deque()
        for entry in entries:
            if not is_url(joined(root, os.fsdecode(entry.path))):
                while waiting:
                    yield _result(waiting)
                yield entry, _fetched(root, entry)
                continue
            if pool is None:
                pool = ThreadPoolExecutor(_THREADS)
                stack.callback(pool.shutdown, cancel_futures=True)
            waiting.append((entry, pool.submit(_fetched, root, entry)))
            if len(waiting) >= _AHEAD:
                yield _result(waiting)
        while waiting:
            yield _result(waiting)


def _result(waiting: deque[tuple[Entry, Future[bytes | Rejected]]]) -> tuple[Entry, bytes | Rejected]:
    entry, future = waiting.popleft()
    return entry, future.result()


def _fetched(root: str, entry: Entry) -> bytes | Rejected:
    try:
        return fetch(root, entry)
    except Rejected as rejected:
        return rejected


def _check_size(size: int) -> None:
    if size > MAX_FILE:
        raise Rejected(f"too large: a file of {size:,} bytes")


def _from_file(root: str, path: str, entry: Entry) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            if entry.member:
                return os.pread(file.fileno(), entry.size, entry.offset)
            _check_size(os.fstat(file.fileno()).st_size)
            return file.readall() or b""
    except OSError as error:
        if error.errno in _FILE_ERRNOS and (os.path.isabs(os.fsdecode(entry.path)) or os.path.isdir(root)):
            raise Rejected(f"cannot read: {error.strerror}") from None
        raise


def _from_url(url: str, entry: Entry) -> bytes:
    store, name = remote(url)
    try:
        if entry.member:
            return store.read_range(name, entry.offset, entry.offset + entry.size)
        if entry.size < 0:
            _check_size(store.size(name))
        return store.read(name)
    except OSError as error:
        code = _code(error)
        status = code if isinstance(code, int) and code not in _PASSING_STATUS else 0
        if code != "NoSuchBucket" and (error.errno in (errno.ENOENT, errno.EACCES) or 400 <= status < 500):
            raise Rejected(f"cannot read: {error.strerror}") from None
        raise


def _code(error: BaseException | None) -> str | int | None:
    """S3's error code or HTTP's status among an error's causes."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return response.get("Error", {}).get("Code")
        status = getattr(error, "status", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None
