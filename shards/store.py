"""Where a shard set lies: a local folder, or an fsspec URL such as `s3://bucket/prefix`."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from shards.files import PARTIAL, sync_folder
from shards.options import is_url

_PART = 16 << 20  # bytes of a part of a multipart upload; ten are under way at once
_CHUNK = 8 << 20  # bytes at a time of a download


class Store(ABC):
    """Files by name in one folder; a name may hold one folder, as `packing.partial/plan.json` does.

    A file with a final name is whole: it appears at once, or not at all. Every method raises FileNotFoundError for
    a name (or a bucket) that is not there, and OSError with `strerror` and `filename` for any other fault. Stores
    may be used from several threads; pickled, they keep their place alone.

    Attributes:
        url: The place: the folder's path, or the URL.
        local: The folder of a local store, else None.
    """

    url: str
    local: Path | None = None

    @property
    @abstractmethod
    def scratch(self) -> Path:
        """Local folder in which files are written before they are put: the store itself where it is local."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """All of a file."""

    @abstractmethod
    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file; fewer where it ends before."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """The file for reading, seekable."""

    @abstractmethod
    def download(self, name: str, path: Path) -> None:
        """Copy a file to the local `path`, which is replaced; not atomic."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a whole file: the name holds what it held before, or `data`."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> None:
        """Write a file that is not there yet; FileExistsError where it is, and nobody else can create it as well."""

    @abstractmethod
    def put(self, path: Path, name: str) -> None:
        """Move a written local file (see `partial`) in under its final name, durably."""

    @abstractmethod
    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of each file directly in the store, or in one of its folders, by sorted name; folders have -1."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its files."""

    @abstractmethod
    def close(self) -> None:
        """Remove the scratch folder of a remote store; the store may still be used."""

    def names(self, folder: str = "") -> list[str]:
        """Names of files and folders directly in the store, or in one of its folders; empty where it is missing."""
        return list(self.sizes(folder))

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        return True

    def partial(self, name: str) -> Path:
        """Local path under which the file `name` is written before it is `put`; its folder is made."""
        path = self.scratch / (name + PARTIAL)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.url,)


class LocalStore(Store):
    """A local folder; files are written aside, synced and renamed."""

    def __init__(self, folder: str | Path) -> None:
        self.local: Path = Path(folder)
        self.url = str(folder)

    @property
    def scratch(self) -> Path:
        """The folder itself, so that a rename commits."""
        return self.local

    def read(self, name: str) -> bytes:
        """All of a file."""
        return (self.local / name).read_bytes()

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file."""
        with open(self.local / name, "rb", buffering=0) as file:
            return os.pread(file.fileno(), end - start, start)

    def open(self, name: str) -> BinaryIO:
        """The file for reading."""
        return open(self.local / name, "rb")

    def download(self, name: str, path: Path) -> None:
        """Copy a file."""
        shutil.copyfile(self.local / name, path)

    def write(self, name: str, data: bytes) -> None:
        """Write aside, sync, rename."""
        path = self.partial(name)
        path.write_bytes(data)
        self.put(path, name)

    def create(self, name: str, data: bytes) -> None:
        """Write aside, sync, and link, which fails where the name is taken."""
        path = self.partial(name)
        path.write_bytes(data)
        try:
            os.link(path, self.local / name)
        finally:
            path.unlink()
        sync_folder(path.parent)

    def put(self, path: Path, name: str) -> None:
        """Sync and rename."""
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        os.replace(path, self.local / name)
        sync_folder((self.local / name).parent)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of each file in the folder."""
        found = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.local / folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                    found[entry.name] = -1 if entry.is_dir() else entry.stat().st_size
        return dict(sorted(found.items()))

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return (self.local / name).stat().st_size

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its files."""
        path = self.local / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    def close(self) -> None:
        """Nothing is held."""


class RemoteStore(Store):
    """A prefix of an object store, by fsspec. An object appears when its upload is complete.

    Credentials and endpoint are those that fsspec finds: for S3 the environment's (`AWS_ACCESS_KEY_ID`,
    `AWS_PROFILE`, `AWS_ENDPOINT_URL`, ...), `~/.aws`, or the machine's role.

    Raises:
        OSError: The URL's protocol is unknown, or the package that speaks it is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        try:
            from fsspec.core import url_to_fs

            # what was listed a moment ago may have changed since: other packers and readers write, too
            self._files, root = url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            extra = "install the extra for S3, `pip install 'fastmoco[s3]'`, or fsspec's package for the protocol"
            raise OSError(errno.EPROTONOSUPPORT, f"{error}; {extra}", url) from None
        self._root = root.rstrip("/")

    @property
    def scratch(self) -> Path:
        """A temporary folder (in TMPDIR) that goes with the process or with `close`."""
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="fastmoco-", ignore_cleanup_errors=True)
        return Path(self._scratch.name)

    def read(self, name: str) -> bytes:
        """All of a file."""
        with self._faults(name):
            return self._files.cat_file(self._path(name))

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file, by one request."""
        if end <= start:
            return b""
        with self._faults(name):
            return self._files.cat_file(self._path(name), start=start, end=end)

    def open(self, name: str) -> BinaryIO:
        """The file for reading, fetched block by block."""
        with self._faults(name):
            return self._files.open(self._path(name), "rb", block_size=_CHUNK)  # type: ignore[return-value]

    def download(self, name: str, path: Path) -> None:
        """Copy a file to a local path."""
        with self._faults(name):
            self._files.get_file(self._path(name), str(path))

    def write(self, name: str, data: bytes) -> None:
        """One upload."""
        with self._faults(name):
            self._files.pipe_file(self._path(name), data)

    def create(self, name: str, data: bytes) -> None:
        """One conditional upload (S3: `If-None-Match: *`)."""
        with self._faults(name):
            self._files.pipe_file(self._path(name), data, mode="create")

    def put(self, path: Path, name: str) -> None:
        """Upload in parts where it is large, then remove the local file."""
        with self._faults(name):
            self._files.put_file(str(path), self._path(name), chunksize=_PART)
        path.unlink()

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of each file, by one listing."""
        where = self._path(folder)
        with self._faults(folder):
            try:
                entries = self._files.ls(where, detail=True)
            except FileNotFoundError:
                return {}
        found = {}
        for entry in entries:
            name = entry["name"].rstrip("/")
            if name != where:  # a marker object for the folder itself
                found[name.rpartition("/")[2]] = -1 if entry["type"] == "directory" else int(entry["size"])
        return dict(sorted(found.items()))

    def size(self, name: str) -> int:
        """Bytes of a file."""
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
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextlib.contextmanager
    def _faults(self, name: str) -> Iterator[None]:
        """Give every fault the form of an OSError that names the file."""
        where = f"{self.url}/{name}" if name else self.url
        try:
            yield
        except OSError as error:
            number = error.errno or (errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EIO)
            cause = error.strerror or str(error) or os.strerror(number)
            if isinstance(error, FileExistsError):
                number = errno.EEXIST
            raise OSError(number, cause, where) from error
        except Exception as error:  # the client libraries' own: no credentials, no connection, a refused request
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}", where) from error


def open_store(place: str | Path) -> Store:
    """The store at a local path or an fsspec URL.

    Raises:
        OSError: The URL's protocol is unknown, or the package that speaks it is not installed.
    """
    return RemoteStore(str(place)) if is_url(place) else LocalStore(place)
