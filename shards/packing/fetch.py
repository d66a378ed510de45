"""Reading an image file, from a path, a URL, or a member of a tar or zip."""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from shards.images.encode import Rejected
from shards.images.options import MAX_FILE
from shards.packing.members import Read, reader_of
from shards.packing.plan import FAULT, Entry
from shards.storage.faults import MissingBucket, Unavailable
from shards.storage.places import WEB, is_url, joined, local
from shards.storage.store import remote

_Member = Callable[[Entry, Read], bytes]
_PART = 1 << 20
_THREADS = 16  # concurrent downloads per worker
_AHEAD = 32  # downloads per worker that are in progress or waiting to be used
# The file is at fault, and is left out. Other errors (a lost network share, no descriptors) fail the shard.
FILE_ERRNOS = frozenset(
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


def fetch_each(
    root: str, entries: Iterable[Entry], leave_out: bool = False, kind: str = ""
) -> Iterator[tuple[Entry, bytes | Rejected]]:
    """Entries in order, each with its bytes or the reason to leave it out.

    Images at URLs are fetched ahead by several threads, files by the caller. An image that is missing, unreadable,
    too large or truncated is left out.

    Args:
        root: Base of relative paths, a local folder or a URL.
        entries: The images.
        leave_out: Whether images that cannot be reached are left out as well.
        kind: Kind of the source, by which members are read.

    Raises:
        OSError: The image is not at fault: for example, the whole source has disappeared. At the end: no image could
            be read, because none could be reached, or a store refused all of its images.
    """
    answers = _Answers(leave_out)
    with reader_of(kind, root) as member:
        for entry, data in _each(root, entries, member):
            yield entry, answers.judged(joined(root, os.fsdecode(entry.where)), data)
    answers.check()


class _Answers:
    """Which servers gave images of a shard, and which only refused."""

    def __init__(self, leave_out: bool) -> None:
        self._leave_out = leave_out
        self._given: set[str] = set()
        self._refused: dict[str, OSError] = {}
        self._unreachable: OSError | None = None

    def judged(self, place: str, data: bytes | Rejected | OSError) -> bytes | Rejected:
        """The bytes, or the reason to leave the image out; raises a fault that is not the image's."""
        server = "/".join(place.split("/")[:3]) if is_url(place) else ""
        if isinstance(data, bytes):
            self._given.add(server)
        elif isinstance(data, OSError):
            if not self._leave_out:
                raise data
            self._unreachable = data
            return Rejected(f"out of reach: {data.strerror}")
        # A web server refuses single pages; a store that refuses every object refuses the credentials.
        elif isinstance(data.__cause__, PermissionError) and not place.startswith(WEB):
            self._refused.setdefault(server, data.__cause__)
        return data

    def check(self) -> None:
        """Raise the fault of a store that refused everything, or of a shard of which nothing could be reached."""
        for server, error in self._refused.items():
            if server not in self._given and not self._leave_out:
                raise error
        if self._unreachable and not self._given:
            raise self._unreachable


def _each(root: str, entries: Iterable[Entry], member: _Member) -> Iterator[tuple[Entry, bytes | Rejected | OSError]]:
    with contextlib.ExitStack() as stack:
        pool: ThreadPoolExecutor | None = None
        waiting: deque[tuple[Entry, Future[bytes | Rejected | OSError]]] = deque()
        for entry in entries:
            place = joined(root, os.fsdecode(entry.where))
            if not is_url(place):
                while waiting:
                    yield _result(waiting)
                yield entry, _fetched(root, place, entry, member)
                continue
            if pool is None:
                pool = ThreadPoolExecutor(_THREADS)
                stack.callback(pool.shutdown, cancel_futures=True)
            waiting.append((entry, pool.submit(_fetched, root, place, entry, member)))
            if len(waiting) >= _AHEAD:
                yield _result(waiting)
        while waiting:
            yield _result(waiting)


def _result(
    waiting: deque[tuple[Entry, Future[bytes | Rejected | OSError]]],
) -> tuple[Entry, bytes | Rejected | OSError]:
    entry, future = waiting.popleft()
    return entry, future.result()


def _fetched(root: str, place: str, entry: Entry, member: _Member) -> bytes | Rejected | OSError:
    """The bytes, the reason to leave the image out, or a fault of the way."""
    try:
        if entry.offset == FAULT:
            raise Rejected(os.fsdecode(entry.place))
        _check_size(entry.size)
        return _from_url(place, entry, member) if is_url(place) else _from_file(root, place, entry, member)
    except Rejected as rejected:
        return rejected
    except (Unavailable, MissingBucket) as fault:
        return fault


def _check_size(size: int) -> None:
    if size > MAX_FILE:
        raise Rejected(f"too large: a file of {size:,} bytes")


def _from_file(root: str, path: str, entry: Entry, member: _Member) -> bytes:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if entry.is_member:
                return member(entry, lambda start, end: os.pread(file, end - start, start))
            size = os.fstat(file).st_size
            _check_size(size)
            data = os.read(file, size + 1)  # a byte more than there should be shows that the file is growing
            return data if len(data) == size else data + _rest(file)
        finally:
            os.close(file)
    except OSError as error:
        # A file below the root is at fault only while the root exists: without this, the loss of a network share would
        # quarantine all remaining images.
        named = os.path.isabs(local(os.fsdecode(entry.path)))
        if entry.is_member:  # the planning has read this archive: its loss is not the fault of each of its images
            raise
        if error.errno in FILE_ERRNOS and (named or os.path.isdir(root)):
            raise Rejected(f"cannot read: {error.strerror}") from None
        raise


def _rest(file: int) -> bytes:
    """The rest after a short read: the file is growing, or its file system returns parts."""
    parts = []
    while part := os.read(file, _PART):
        parts.append(part)
    return b"".join(parts)


def _from_url(url: str, entry: Entry, member: _Member) -> bytes:
    """The file's bytes, or Rejected for a fault of its own."""
    try:
        store, name = remote(url)
        if entry.is_member:
            return member(entry, partial(store.read_range, name))
        data = store.read_range(name, 0, MAX_FILE + 1)  # the size is not always known beforehand
    except (Unavailable, MissingBucket):
        raise
    except OSError as error:
        if entry.is_member:  # as in `_from_file`
            raise Unavailable(error.errno, error.strerror, url) from error
        raise Rejected(f"cannot read: {error.strerror}") from error
    if len(data) > MAX_FILE:
        raise Rejected(f"too large: a file of more than {MAX_FILE:,} bytes")
    return data
