"""Tars as sequential streams: local, in a bucket or on a web server, compressed or not."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
from collections.abc import Iterator
from typing import BinaryIO

from shards.errors import StreamError
from shards.format.members import TarInput
from shards.storage.store import open_place

_CHUNK = 1 << 20
_SILENCE = 60  # seconds without data after which a connection to a web server fails


@contextlib.contextmanager
def opened(tar: str) -> Iterator[TarInput]:
    """Open a tar for `TarReader`; it is read from start to end, without seeking back.

    Args:
        tar: Path or URL; `.tar.gz` and `.tgz` are decompressed.

    Raises:
        OSError: It cannot be read. Also raised by reads.
    """
    with _stream(tar) as file:
        yield _Forwards(gzip.GzipFile(fileobj=file) if tar.endswith((".tar.gz", ".tgz")) else file)


class _Forwards(TarInput):
    """A file that cannot seek: a web server's answer, or compressed data."""

    def __init__(self, file: BinaryIO | gzip.GzipFile) -> None:
        # Does not call TarInput.__init__, which seeks to the end to learn the size.
        self._file, self._place, self.last, self.size = file, 0, b"", None

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        """Move forwards, by reading and discarding."""
        if whence != os.SEEK_SET or place < self._place:
            raise io.UnsupportedOperation(f"cannot seek back from byte {self._place} to {place}")
        while self._place < place and self.read(min(_CHUNK, place - self._place)):
            pass
        return self._place

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes; fewer only at the end, although a network file may return fewer at a time."""
        parts, left = [], size
        with _faults():
            while left and (part := self._file.read(left if left > 0 else _CHUNK)):
                parts.append(part)
                left -= len(part) if left > 0 else 0
        self.last = parts[0] if len(parts) == 1 else b"".join(parts)
        self._place += len(self.last)
        return self.last


def _stream(tar: str) -> BinaryIO:
    """Open the tar; from a web server, all of it by one request."""
    if not tar.startswith(("http://", "https://")):
        return open_place(tar)
    try:
        import aiohttp
        import fsspec
    except ImportError as error:
        raise StreamError(f"{tar}: {error}; to read from web servers, `pip install fsspec aiohttp`") from None
    with _faults():
        # no limit on the total time: a slow consumer is not an error, a silent server is
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
        files = fsspec.filesystem("http", client_kwargs={"timeout": timeout})
        # Block size 0 makes it one plain request. Else fsspec asks for the size, and sends a request for each block.
        return files.open(tar, "rb", block_size=0)  # type: ignore[return-value]


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """Turn every failure into an OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # the types of client libraries and of decompression
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error
