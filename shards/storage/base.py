"""The contract of a place that holds files by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from shards.storage.files import partial


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
