"""Tars read forwards only, member by member: from a file, a bucket or a web server. A broken one is an error."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from shards.errors import StreamError
from shards.format.index import BLOCK
from shards.images.formats import EXTENSIONS
from shards.storage.store import open_place

IMAGES = {extension.decode() for extension in EXTENSIONS}
"""Extensions of images."""

_CHUNK = 1 << 20
_SILENCE = 60  # seconds until a web server that sends nothing is given up


def members(tar: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of each regular file of a tar; of those that are no images the names alone.

    Hidden files and WebDataset's `__x__` are passed over.

    Args:
        tar: Path or URL; `.tar.gz` and `.tgz` are unpacked.

    Raises:
        tarfile.TarError: The tar is damaged, or does not end as a tar does.
        OSError: It cannot be read.
    """
    with _opened(tar) as file:
        packed = tar.endswith((".tar.gz", ".tgz"))
        yield from _members(_Forward(gzip.GzipFile(fileobj=file) if packed else file))


def _members(file: _Forward) -> Iterator[tuple[str, bytes]]:
    archive = None
    while True:
        try:
            if archive is None:
                archive = _open(file)
            member = archive.next()
        except (ValueError, OverflowError) as error:  # a damaged size may be any number
            raise tarfile.ReadError(f"damaged: {error}") from None
        archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
        if member is None:
            break
        if not member.isreg() or member.issparse() or member.name.rpartition("/")[2].startswith((".", "__")):
            continue
        data = b""
        if member.name.rpartition(".")[2].lower() in IMAGES:
            file.seek(member.offset_data)
            data = file.read(member.size)
            if len(data) < member.size:
                raise tarfile.ReadError(f"truncated: it ends at byte {file.tell():,}, within {member.name}")
        yield member.name, data
    _check_end(file)


def _open(file: Any) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="backslashreplace")


def _check_end(file: _Forward) -> None:
    """Raise tarfile.ReadError where the headers did not end with the end mark; tarfile stops there silently."""
    at = file.tell() - len(file.last)
    if len(file.last) < BLOCK:
        raise tarfile.ReadError(f"truncated: it ends at byte {file.tell():,} without an end mark")
    if file.last.strip(b"\0"):
        raise tarfile.ReadError(f"damaged: no tar header at byte {at:,}")
    while chunk := file.read(_CHUNK):
        if chunk.strip(b"\0"):
            raise tarfile.ReadError(f"damaged: it goes on behind its end mark at byte {at:,}")


class _Forward(io.RawIOBase):
    """A file as `tarfile` needs it, over one that is only read forwards.

    Attributes:
        last: What the last `read` gave.
    """

    def __init__(self, file: BinaryIO | gzip.GzipFile) -> None:
        self._file, self._place, self.last = file, 0, b""

    def tell(self) -> int:
        return self._place

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        """Go forwards, by reading."""
        if whence != os.SEEK_SET or place < self._place:
            raise io.UnsupportedOperation(f"back from byte {self._place} to {place}")
        while self._place < place and self.read(min(_CHUNK, place - self._place)):
            pass
        return self._place

    def read(self, size: int = -1) -> bytes:
        """So many bytes; fewer at the end. Every fault has the form of an OSError."""
        parts, left = [], size
        with _faults():
            while left and (part := self._file.read(left if left > 0 else _CHUNK)):
                parts.append(part)
                left -= len(part) if left > 0 else 0
        self.last = parts[0] if len(parts) == 1 else b"".join(parts)
        self._place += len(self.last)
        return self.last


def _opened(tar: str) -> BinaryIO:
    """The tar for reading; one request for all of it where it lies on a web server."""
    if not tar.startswith(("http://", "https://")):
        return open_place(tar)
    try:
        import aiohttp
        import fsspec
    except ImportError as error:
        raise StreamError(
            f"{tar}: {error}; install what reads from web servers, `pip install fsspec aiohttp`"
        ) from None
    with _faults():
        # a reader that takes its time is no fault: only silence is
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
        files = fsspec.filesystem("http", client_kwargs={"timeout": timeout})
        return files.open(tar, "rb", block_size=0)  # type: ignore[return-value]


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """Give every fault the form of an OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # the client libraries' own, and those of unpacking
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error
