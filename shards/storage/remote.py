"""A store at an fsspec URL, such as `s3://bucket/prefix`."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from shards.storage.base import ALL, Store, check_length
from shards.storage.faults import MissingBucket, Unavailable, in_set, translated
from shards.storage.network import Network, current, pauses
from shards.storage.retry import host_of, retried

T = TypeVar("T")

_PART = 16 << 20  # bytes per part of a multipart upload; s3fs uploads ten at a time
_CHUNK = 8 << 20  # bytes per request of a file that is read sequentially
_PATTERN = frozenset("*?[")  # what makes a path a pattern in fsspec


class RemoteStore(Store):
    """A prefix of an object store, through fsspec. An object appears when its upload is complete.

    fsspec finds credentials and endpoint: for S3 in the environment (`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`,
    `AWS_ENDPOINT_URL`, ...), in `~/.aws`, or from the machine's role.

    Requests are retried by `retried` alone: the client libraries' own retries are switched off, since they would
    multiply. What fails is raised as `translated` has it.

    Args:
        url: Its place.
        network: Settings of the connections; None: those of this process.

    Raises:
        OSError: The URL's protocol is unknown, or the package for it is not installed.
    """

    def __init__(self, url: str, network: Network | None = None) -> None:
        self.url = url.rstrip("/")
        self.network = network or current()
        self._delays = pauses(self.network.retries)
        self._given = False  # whether a request has succeeded
        scheme, _, rest = self.url.partition("://")
        self._host = host_of(f"{scheme}://{rest.partition('/')[0]}")
        try:
            from fsspec.core import url_to_fs

            # Listings are not cached: other packers and readers write to the same place.
            options = self._options(self.network)
            self._files: Any
            self._files, root = url_to_fs(self.url, use_listings_cache=False, **options)
        except (ImportError, ValueError) as error:
            extra = "install the S3 extra, `pip install 'fastmoco[s3]'`, or fsspec's package for the protocol"
            raise Unavailable(errno.EPROTONOSUPPORT, f"{error}; {extra}", url) from None
        except OSError as error:  # some protocols connect at once
            raise translated(error, url) from error
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

    def _options(self, network: Network) -> dict[str, Any]:
        """Options of the file system."""
        return {}

    def read(self, name: str, most: int = ALL) -> bytes:
        """Content of a file."""
        # Not without a range: s3fs would ask for the size first, by HEAD, whose answer does not say why it fails.
        data = self._range(name, 0, min(ALL, most + 1))
        check_length(len(data), most, f"{self.url}/{name}")
        return data

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file, by one request; in a set, a file that ends before is a fault of the way."""
        return self._range(name, start, end, whole=self.network.of_set) if end > start else b""

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading; it is fetched block by block."""
        return io.BufferedReader(_Ranged(self, name, self.size(name)), _CHUNK)

    def write(self, name: str, data: bytes) -> None:
        """One upload."""
        self._try(name, lambda: self._files.pipe_file(self._path(name), data))

    def create(self, name: str, data: bytes) -> None:
        """One conditional upload (S3: `If-None-Match: *`).

        If the answer of the store is lost, the retry finds the name taken by itself.
        """
        self._try(name, lambda: self._files.pipe_file(self._path(name), data, mode="create"))

    def put(self, files: Mapping[str, Path]) -> None:
        """Upload one file after another, large ones in parts, and remove the local files."""
        for name, path in files.items():
            self._put(name, path)
            path.unlink()

    def _put(self, name: str, path: Path) -> None:
        self._try(name, lambda: self._files.put_file(str(path), self._path(name), chunksize=_PART))

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Sizes of the files, by one listing."""
        where = self._path(folder).rstrip("/")
        try:
            entries = self._try(folder, lambda: self._files.ls(where, detail=True))
        except MissingBucket:
            raise
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
        found = self._try(name, lambda: self._files.info(self._path(name)))
        if found["type"] == "directory":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self.url}/{name}")
        return int(found["size"])

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its files."""
        path = self._path(name)

        def request() -> None:
            if _PATTERN.isdisjoint(path):
                self._files.rm(path, recursive=True)
                return
            # `rm` would take the path for a pattern: that of set[1] is the path of set1
            found = self._files.find(path)
            if not found:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            for each in found:
                self._files.rm_file(each)

        self._try(name, request)

    def close(self) -> None:
        """Remove the scratch folder."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url,)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _range(self, name: str, start: int, end: int, whole: bool = False) -> bytes:
        def request() -> bytes:
            data = self._request(name, start, end)
            if whole and len(data) < end - start:
                raise Unavailable(errno.EIO, f"ends after {len(data):,} of {end - start:,} bytes at {start:,}")
            return data

        try:
            return self._try(name, request)
        except OSError as error:
            if error.errno != errno.ERANGE:
                raise
            return b""  # the file ends before the range

    def _request(self, name: str, start: int, end: int) -> bytes:
        return self._files.cat_file(self._path(name), start=start, end=end)

    def _renew(self) -> None:
        """Called before a retry after the credentials were refused."""

    def _try(self, name: str, request: Callable[[], T]) -> T:
        """The result of a request, with retries; any failure is an OSError that names the file."""
        where = f"{self.url}/{name}" if name else self.url
        refused = False

        def once() -> T:
            nonlocal refused
            try:
                if refused:
                    self._renew()
                result = request()
                self._given = True
                return result
            except Exception as error:  # the client libraries have types of their own
                fault = translated(error, where, self.network.timeout)
                fault = in_set(fault, self._given) if self.network.of_set else fault
                refused = isinstance(fault, Unavailable) and fault.credentials
                raise fault from error

        return retried(once, where, self._delays, self._host)

    def pause(self, seconds: float) -> bool:
        """Wait; returns False at once when `give_up` is called."""
        return self._host.sleep(seconds)

    def give_up(self) -> None:
        """Let the requests that have begun fail instead of being retried."""
        self._host.give_up()


class _Ranged(io.RawIOBase):
    """A remote file that is read by ranges, each of them a request with retries."""

    def __init__(self, store: RemoteStore, name: str, size: int) -> None:
        self._store, self._name, self._size, self._at = store, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + place)
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._store.read_range(self._name, self._at, min(self._size, self._at + len(buffer)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
