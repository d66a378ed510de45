"""Tars as sequential streams: local, in a bucket or on a web server, compressed or not."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from shards.format.tar_reader import TarInput
from shards.storage.network import patient
from shards.storage.places import is_url
from shards.storage.store import remote
from shards.storage.web import WebStore

_CHUNK = 1 << 20


@contextlib.contextmanager
def opened(tar: str, delays: Sequence[float] | None = None) -> Iterator[TarInput]:
    """Open a tar for `TarReader`; it is read from start to end, without seeking back.

    While a store or a web server is out of reach, reads wait, and then continue where they were.

    Args:
        tar: Path or URL; a compressed one is decompressed.
        delays: Seconds before each retry of a request to a web server; None: as long as `FASTMOCO_STORE_WAIT` says.

    Raises:
        OSError: It cannot be read; Unavailable if the way to it is at fault. Also raised by reads.
    """
    with _stream(tar, delays) as file:
        # by content: some servers decompress on the way what the name says is compressed
        zipped = file.peek(2)[:2] == b"\x1f\x8b"  # type: ignore[attr-defined]
        yield _Forwards(gzip.GzipFile(fileobj=file) if zipped else file)


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
            while left and (part := self._file.read(min(left, _CHUNK) if left > 0 else _CHUNK)):
                parts.append(part)
                left -= len(part) if left > 0 else 0
        self.last = parts[0] if len(parts) == 1 else b"".join(parts)
        self._place += len(self.last)
        return self.last


def _stream(tar: str, delays: Sequence[float] | None) -> BinaryIO:
    """Open the tar; from a web server, all of it by one request."""
    if not is_url(tar):
        return open(tar, "rb")
    store, name = remote(tar, patient())
    if not isinstance(store, WebStore):
        return store.open(name)
    return io.BufferedReader(store.stream(name, delays), _CHUNK)


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """Turn every failure into an OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # the types of client libraries and of decompression
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error
