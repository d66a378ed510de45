"""Where a shard set lies: a local folder, or an fsspec URL such as `s3://bucket/prefix`."""

from __future__ import annotations

import contextlib
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from shards.packing.options import is_url
from shards.storage.files import partial, sync, sync_folder


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
    def put(self, files: Mapping[str, Path]) -> None:
        """Move written local files (see `partial`) in under their final names, durably; the last after the others."""

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
        """Remove the scratch folder of a remote store, which its other users on this machine have done with."""

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
        path = partial(self.scratch / name)
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
        self.put({name: path})

    def create(self, name: str, data: bytes) -> None:
        """Write aside, sync, and link, which fails where the name is taken."""
        path = self.partial(name)
        path.write_bytes(data)
        try:
            os.link(path, self.local / name)
        finally:
            path.unlink()
        sync_folder(path.parent)

    def put(self, files: Mapping[str, Path]) -> None:
        """Sync all at once, so that they share the waits for the disk; rename; sync the folder before the last one."""
        with ThreadPoolExecutor(len(files)) as pool:
            list(pool.map(sync, files.values()))
        *others, last = ((path, self.local / name) for name, path in files.items())
        for path, name in others:
            os.replace(path, name)
        for folder in {name.parent for _, name in others}:
            sync_folder(folder)
        os.replace(*last)
        sync_folder(last[1].parent)

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


def open_store(place: str | Path) -> Store:
    """The store at a local path or an fsspec URL.

    Raises:
        OSError: The URL's protocol is unknown, or the package that speaks it is not installed.
    """
    if is_url(place):
        from shards.storage.remote import RemoteStore

        return RemoteStore(str(place))
    return LocalStore(place)
