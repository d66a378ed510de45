"""A folder of images: local, following links, or below an fsspec URL."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from shards.errors import PackError
from shards.format.manifest import Quarantined
from shards.images.formats import EXTENSIONS
from shards.packing.sources.record import Record, Source
from shards.storage.places import is_url
from shards.storage.store import open_store
from shards.words import display

SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))
_SNIFF = 16  # bytes: enough for the longest of the signatures below
_Identity = tuple[int, int]  # device and inode of a folder


class FolderSource(Source):
    """Images in a folder and its sub-folders; the top-level sub-folders are the classes.

    Local files count as images by name or by their first bytes, files at a URL by name only.

    Args:
        root: Folder to search; a local path or a URL.
        skip: Folder to skip (the output, if it is inside the source).
    """

    kind = "folder"
    least_classes = 2
    numbered = False
    extensions = EXTENSIONS
    sniff = True

    def __init__(self, root: str, skip: Path | None = None) -> None:
        self.root = root
        self._skip = skip

    def records(self) -> Iterator[Record | Quarantined]:
        """The images as they are found. Memory: the folders still to search; at a URL, the names in one folder."""
        return self._remote() if is_url(self.root) else self._local()

    def _record(self, path: bytes, size: int) -> Record:
        top, slash, _ = path.partition(b"/")
        return Record(path, size, top if slash else None)

    def _remote(self) -> Iterator[Record | Quarantined]:
        try:
            with open_store(self.root) as store:
                pending = [""]
                while pending:
                    folder = pending.pop()
                    for name, size in store.sizes(folder).items():
                        path = f"{folder}/{name}" if folder else name
                        if size < 0:
                            pending.append(path)
                        elif self._named(os.fsencode(name)):
                            yield self._record(os.fsencode(path), size)
                        else:
                            self.ignored += 1
        except OSError as error:
            raise PackError(f"cannot read --src {error.filename or self.root}: {error.strerror}") from error

    def _local(self) -> Iterator[Record | Quarantined]:
        """Walk depth first. Each folder carries its ancestors, so that a link to one of them is detected as a loop."""
        try:
            top = os.stat(self.root)
            os.scandir(self.root).close()  # the source itself cannot be read: an error, not a quarantined folder
        except OSError as error:
            raise PackError(f"cannot read --src {display(self.root)}: {error.strerror}") from None
        skip = _identity(self._skip.stat()) if self._skip is not None and self._skip.exists() else None
        # Names are bytes from here on: the file system does not require a valid encoding.
        root = os.fsencode(self.root)
        pending: list[tuple[bytes, frozenset[_Identity]]] = [(b"", frozenset((_identity(top),)))]
        while pending:
            folder, ancestors = pending.pop()
            try:
                prefix = folder + b"/" if folder else b""
                with os.scandir(os.path.join(root, folder)) as entries:
                    for entry in entries:
                        path = prefix + entry.name
                        found = self._entry(entry, path, ancestors)
                        if isinstance(found, (Record, Quarantined)):
                            yield found
                        elif found is not None and found != skip:
                            pending.append((path, ancestors | {found}))
            except OSError as error:
                yield Quarantined(display(folder), f"cannot read folder: {error.strerror}")

    def _entry(
        self, entry: os.DirEntry[bytes], path: bytes, ancestors: frozenset[_Identity]
    ) -> Record | Quarantined | _Identity | None:
        """An image, a problem, the identity of a folder to search, or None."""
        try:
            status = entry.stat()
        except OSError as error:
            return Quarantined(display(path), _unreadable(entry, error))
        if stat.S_ISDIR(status.st_mode):
            if _identity(status) in ancestors:
                return Quarantined(display(path), "link loop: leads back to a parent folder")
            return _identity(status)
        named = self._named(entry.name)
        if not stat.S_ISREG(status.st_mode):
            if named:
                return Quarantined(display(path), "not a regular file")
        elif named or (self.sniff and status.st_size >= _SNIFF and _looks_like_image(entry.path)):
            return self._record(path, status.st_size)
        self.ignored += 1
        return None

    def _named(self, name: bytes) -> bool:
        return name.rpartition(b".")[2].lower() in self.extensions


class NamedFiles(FolderSource):
    """Files of other kinds in a folder and its sub-folders, by extension.

    Args:
        root: Folder to search; a local path or a URL.
        extensions: Without dots, in lower case.
    """

    sniff = False

    def __init__(self, root: str, *extensions: bytes) -> None:
        super().__init__(root)
        self.extensions = frozenset(extensions)


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino


def _unreadable(entry: os.DirEntry[bytes], error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "link loop: leads back to itself"
    if error.errno == errno.ENOENT and entry.is_symlink():
        return f"broken link: leads to {display(os.readlink(entry.path))}"
    return f"cannot read: {error.strerror}"


def _looks_like_image(path: bytes) -> bool:
    """Whether a file without an image's extension begins like an image."""
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(_SNIFF)
    except OSError:
        return False
    return (
        head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or head[4:12] in (b"ftypavif", b"ftypheic")
    )
