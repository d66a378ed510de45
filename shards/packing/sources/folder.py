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
from shards.packing.sources.selection import Selection
from shards.storage.places import is_url
from shards.storage.store import open_folder
from shards.words import counted, display

_SNIFF = 16  # bytes: enough for the longest of the signatures below
_Identity = tuple[int, int]  # device and inode of a folder


class FolderSource(Source):
    """Images in a folder and its sub-folders; the top-level sub-folders are the classes.

    Local files count as images by name or by their first bytes, files at a URL by name only.

    Args:
        root: Folder to search; a local path or a URL.
        skip: Folder to skip (the output, if it is inside the source).
        selection: Which files and folders are packed; None: all but hidden ones.
    """

    kind = "folder"
    least_classes = 2
    numbered = False
    extensions = EXTENSIONS
    sniff = True

    def __init__(self, root: str, skip: Path | None = None, selection: Selection | None = None) -> None:
        self.root = root
        self.selection = selection or Selection()
        self._skip = skip
        self._imageless: set[bytes] = set()  # top-level folders in which no image has been found

    def records(self) -> Iterator[Record | Quarantined]:
        """The images as they are found. Memory: the folders still to search; at a URL, the names in one folder."""
        return self._remote() if is_url(self.root) else self._local()

    def _record(self, path: bytes, size: int) -> Record:
        top, slash, _ = path.partition(b"/")
        self._imageless.discard(top)
        return Record(path, size, top or None if slash else None)  # the name before a leading slash is empty

    def notes(self) -> Iterator[str]:
        """See Source.notes."""
        yield from super().notes()
        if self._imageless:
            names = ", ".join(map(display, sorted(self._imageless)[:5])) + (", ..." if len(self._imageless) > 5 else "")
            holds = (
                "holds no image and is no class" if len(self._imageless) == 1 else "hold no image and are no classes"
            )
            yield f"{counted(len(self._imageless), 'top-level folder')} {holds}: {names}"

    def _remote(self) -> Iterator[Record | Quarantined]:
        try:
            store, top = open_folder(self.root)
            with store:
                pending = [top]
                while pending:
                    folder = pending.pop()
                    for name, size in store.sizes(folder).items():
                        path = (folder + name)[len(top) :]
                        named = size < 0 or self._named(os.fsencode(name))
                        if self.selection.excludes(os.fsencode(path)):
                            continue
                        if not named:
                            self.ignored += 1
                        elif self.selection.is_hidden(os.fsencode(name)):
                            self.selection.hide(os.fsencode(name), size < 0)
                        elif size < 0:
                            self._enter(os.fsencode(path))
                            pending.append(f"{folder}{name}/")
                        else:
                            yield self._record(os.fsencode(path), size)
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
                            self._enter(path)
                            pending.append((path, ancestors | {found}))
            except OSError as error:
                yield Quarantined(display(folder), f"cannot read folder: {error.strerror}")

    def _enter(self, folder: bytes) -> None:
        if folder and b"/" not in folder:
            self._imageless.add(folder)

    def _entry(
        self, entry: os.DirEntry[bytes], path: bytes, ancestors: frozenset[_Identity]
    ) -> Record | Quarantined | _Identity | None:
        """An image, a problem, the identity of a folder to search, or None."""
        if self.selection.excludes(path):
            return None
        hidden = self.selection.is_hidden(entry.name)
        try:
            status = entry.stat()
        except OSError as error:
            return None if hidden else Quarantined(display(path), _unreadable(entry, error))
        if hidden and (stat.S_ISDIR(status.st_mode) or self._is_image(entry, status)):
            self.selection.hide(entry.name, stat.S_ISDIR(status.st_mode))
            return None
        if stat.S_ISDIR(status.st_mode):
            if _identity(status) in ancestors:
                return Quarantined(display(path), "link loop: leads back to a parent folder")
            return _identity(status)
        if self._is_image(entry, status):
            return self._record(path, status.st_size)
        if self._named(entry.name) and not hidden:
            return Quarantined(display(path), "not a regular file")
        self.ignored += 1
        return None

    def _is_image(self, entry: os.DirEntry[bytes], status: os.stat_result) -> bool:
        if not stat.S_ISREG(status.st_mode):
            return False
        return self._named(entry.name) or (self.sniff and status.st_size >= _SNIFF and _looks_like_image(entry.path))

    def _named(self, name: bytes) -> bool:
        return name.rpartition(b".")[2].lower() in self.extensions


class NamedFiles(FolderSource):
    """Files of other kinds in a folder and its sub-folders, by extension.

    Args:
        root: Folder to search; a local path or a URL.
        extensions: Without dots, in lower case.
        selection: See FolderSource.
    """

    sniff = False

    def __init__(self, root: str, *extensions: bytes, selection: Selection | None = None) -> None:
        super().__init__(root, selection=selection)
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
