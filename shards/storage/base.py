"""The interface of stores: places that hold files by name."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from shards.storage.files import partial

ALL = 1 << 42  # more bytes than any file has


def check_length(size: int, most: int, where: str | Path) -> None:
    """Raise OSError if a file of `size` bytes has more than it may have."""
    if size > most:
        raise OSError(errno.EFBIG, f"it has more than the {most:,} bytes that such a file can have", str(where))


class Store(ABC):
    """Files by name in one folder; a name may include one sub-folder, as in `packing.partial/plan.json`.

    A file with a final name is complete: it appears at once or not at all. Every method raises FileNotFoundError for
    a missing name (or bucket), and OSError with `strerror` and `filename` for any other failure. Stores may be
    shared by threads; a pickle holds the place only.

    Attributes:
        url: The folder's path, or the URL.
        local: The folder of a local store, else None.
    """

    url: str
    local: Path | None = None

    @property
    @abstractmethod
    def scratch(self) -> Path:
        """Local folder in which files are written before `put`: for a local store, the store itself."""

    @abstractmethod
    def read(self, name: str, most: int = ALL) -> bytes:
        """Content of a file; OSError (EFBIG) if it has more than `most` bytes."""

    @abstractmethod
    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file; fewer if it ends first."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Open a file for reading; it is seekable."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically: the name holds either its old content or `data`."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> None:
        """Create a file; FileExistsError if it exists. Only one of several concurrent callers succeeds."""

    @abstractmethod
    def put(self, files: Mapping[str, Path]) -> None:
        """Move local files (see `partial`) to their final names, durably; the last one after the others."""

    @abstractmethod
    def sizes(self, folder: str = "") -> dict[str, int]:
        """Sizes of the files directly in the store, or in one of its folders, by sorted name; -1 for folders."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Size of a file in bytes."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its files."""

    @abstractmethod
    def close(self) -> None:
        """Remove the scratch folder of a remote store, once no process on this machine uses it any more."""

    def names(self, folder: str = "") -> list[str]:
        """Names of files and folders directly in the store, or in one of its folders; empty if that is missing."""
        return list(self.sizes(folder))

    def exists(self, name: str) -> bool:
        """Whether the file exists."""
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        return True

    def partial(self, name: str) -> Path:
        """Local path under which to write the file `name` before `put`; its folder is created."""
        path = partial(self.scratch / name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def give_up(self) -> None:  # noqa: B027 (a local folder has no retries)
        """Let the requests that have begun fail instead of being retried."""

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"
