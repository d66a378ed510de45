"""A store in a local folder."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from shards.storage.base import ALL, Store, check_length
from shards.storage.files import sync, sync_folder, write_whole


class LocalStore(Store):
    """A local folder. Files are written under a temporary name, synced and renamed."""

    def __init__(self, folder: str | Path) -> None:
        self.local: Path = Path(folder)
        self.url = str(self.local)  # without a slash at its end: names are appended

    @property
    def scratch(self) -> Path:
        """The folder itself, so that a rename commits a file."""
        return self.local

    def read(self, name: str, most: int = ALL) -> bytes:
        """Content of a file."""
        with open(self.local / name, "rb") as file:
            check_length(os.fstat(file.fileno()).st_size, most, file.name)
            return file.read()

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file."""
        with open(self.local / name, "rb", buffering=0) as file:
            return os.pread(file.fileno(), end - start, start)

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading."""
        return open(self.local / name, "rb")

    def write(self, name: str, data: bytes) -> None:
        """Write under a temporary name, sync, rename."""
        path = self.local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)

    def create(self, name: str, data: bytes) -> None:
        """Write under a temporary name, then link, which fails if the name exists."""
        # Not open(..., "x"): the name would exist before its content.
        path = self.partial(name)
        path.write_bytes(data)
        try:
            os.link(path, self.local / name)
        finally:
            path.unlink()
        sync_folder(path.parent)

    def put(self, files: Mapping[str, Path]) -> None:
        """Sync, rename, and sync the folder before the last rename."""
        # Not one `whole_file` after another: files that are synced at the same time share one wait for the disk.
        with ThreadPoolExecutor(len(files)) as pool:
            list(pool.map(sync, files.values()))
        *others, last = ((path, self.local / name) for name, path in files.items())
        for path, name in others:
            os.replace(path, name)
        for folder in {name.parent for _, name in others}:
            sync_folder(folder)
        # Not before the folder is synced: a file system may persist renames in any order, and after a crash the record
        # must not exist without the tar.
        os.replace(*last)
        sync_folder(last[1].parent)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Sizes of the files in a folder."""
        found = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.local / folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                    found[entry.name] = -1 if entry.is_dir() else entry.stat().st_size
        return dict(sorted(found.items()))

    def size(self, name: str) -> int:
        """Size of a file in bytes."""
        return (self.local / name).stat().st_size

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its files."""
        path = self.local / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    def close(self) -> None:
        """Nothing to close."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url,)
