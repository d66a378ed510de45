"""A store at an fsspec URL, such as `s3://bucket/prefix`."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from shards.storage.base import Store

_PART = 16 << 20  # bytes per part of a multipart upload; s3fs uploads ten at a time
_CHUNK = 8 << 20  # bytes per request of a file that is read sequentially
# fsspec raises these without a number.
_ERRNOS = {FileNotFoundError: errno.ENOENT, FileExistsError: errno.EEXIST, PermissionError: errno.EACCES}


class RemoteStore(Store):
    """A prefix of an object store, through fsspec. An object appears when its upload is complete.

    fsspec finds credentials and endpoint: for S3 in the environment (`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`,
    `AWS_ENDPOINT_URL`, ...), in `~/.aws`, or from the machine's role.

    Raises:
        OSError: The URL's protocol is unknown, or the package for it is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            from fsspec.core import url_to_fs

            # Listings are not cached: other packers and readers write to the same place.
            self._files, root = url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            extra = "install the S3 extra, `pip install 'fastmoco[s3]'`, or fsspec's package for the protocol"
            raise OSError(errno.EPROTONOSUPPORT, f"{error}; {extra}", url) from None
        self._root = root.rstrip("/")

    @property
    def scratch(self) -> Path:
        """A folder in TMPDIR, shared by the user's processes on this machine that write to this place."""
        # A name that the next run computes again, so that it can remove what a killed run has left.
        place = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"fastmoco-{os.getuid()}-{place}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():  # TMPDIR is often shared, and the name can be guessed
            raise OSError(
                errno.EPERM, "this folder belongs to another user; set TMPDIR to a folder of your own", str(folder)
            )
        return folder

    def read(self, name: str) -> bytes:
        """Content of a file."""
        with self._faults(name):
            return self._files.cat_file(self._path(name))

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file, by one request."""
        if end <= start:
            return b""
        with self._faults(name):
            return self._files.cat_file(self._path(name), start=start, end=end)

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading; it is fetched block by block."""
        with self._faults(name):
            return self._files.open(self._path(name), "rb", block_size=_CHUNK)  # type: ignore[return-value]

    def write(self, name: str, data: bytes) -> None:
        """One upload."""
        with self._faults(name):
            self._files.pipe_file(self._path(name), data)

    def create(self, name: str, data: bytes) -> None:
        """One conditional upload (S3: `If-None-Match: *`)."""
        with self._faults(name):
            self._files.pipe_file(self._path(name), data, mode="create")

    def put(self, files: Mapping[str, Path]) -> None:
        """Upload one file after another, large ones in parts, and remove the local files."""
        for name, path in files.items():
            with self._faults(name):
                self._files.put_file(str(path), self._path(name), chunksize=_PART)
            path.unlink()

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Sizes of the files, by one listing."""
        where = self._path(folder)
        with self._faults(folder):
            try:
                entries = self._files.ls(where, detail=True)
            except FileNotFoundError:
                return {}
        found = {}
        for entry in entries:
            name = entry["name"].rstrip("/")
            if name != where:  # else a marker object for the folder itself
                found[name.rpartition("/")[2]] = -1 if entry["type"] == "directory" else int(entry["size"])
        return dict(sorted(found.items()))

    def size(self, name: str) -> int:
        """Size of a file in bytes."""
        with self._faults(name):
            found = self._files.info(self._path(name))
        if found["type"] == "directory":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self.url}/{name}")
        return int(found["size"])

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its files."""
        with self._faults(name):
            self._files.rm(self._path(name), recursive=True)

    def close(self) -> None:
        """Remove the scratch folder."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url,)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextlib.contextmanager
    def _faults(self, name: str) -> Iterator[None]:
        """Turn every failure into an OSError that names the file."""
        where = f"{self.url}/{name}" if name else self.url
        try:
            yield
        except OSError as error:
            number = next((n for kind, n in _ERRNOS.items() if isinstance(error, kind)), error.errno or errno.EIO)
            message = error.strerror or str(error)
            # For these, fsspec's text is only the path, unless the bucket is missing.
            plain = number in (errno.ENOENT, errno.EEXIST) and "bucket does not exist" not in message
            cause = os.strerror(number) if plain else message
            raise OSError(number, cause, where) from error
        except Exception as error:  # the client libraries' own types: no credentials, no connection, ...
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}", where) from error
