"""The interface of sources: a stream of records and of problems."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from typing import NamedTuple

from shards.format.manifest import Quarantined
from shards.packing.sources.selection import Selection


class Record(NamedTuple):
    """One image of a source.

    Attributes:
        path: Path as the source names it: relative to the root, absolute, or a URL; for a member, that of its archive.
        size: Size of the image file in bytes; -1 if unknown.
        label: Name of its class, or its number in decimal digits; None if it has no label.
        member: Name of the image in the archive at `path`; empty if `path` is the image.
        offset: Where the member is in the archive, as `packing.members` reads it; -1 if `path` is the image.
        url: Where the image was fetched from, if the source says so; empty if `path` is the URL.
        name: What a table calls the image; empty if it gives no name.
    """

    path: bytes
    size: int = -1
    label: bytes | None = None
    member: bytes = b""
    offset: int = -1
    url: bytes = b""
    name: bytes = b""


class Source(ABC):
    """A source of images.

    Attributes:
        kind: One of `options.SOURCES`.
        root: Base of the records' relative paths; a local folder or URL.
        selection: Which of its files are packed; counts the others while the records are read.
        ignored: Number of files of other kinds; counted while the records are read.
        whole: Whether nothing of it was damaged, once the records are read.
        least_classes: With fewer classes than this, the images have no labels.
        numbered: Whether classes whose names are all numbers are labelled by these numbers.
        size: Bytes of all images, where the records do not have their sizes.
        fingerprint: What tells this source from another one with the same records, once these are read.
    """

    kind: str
    root: str
    selection: Selection
    ignored: int = 0
    whole: bool = True
    least_classes: int = 1
    numbered: bool = True
    fingerprint: bytes = b""
    size: int = 0

    @abstractmethod
    def records(self) -> Iterator[Record | Quarantined]:
        """All images in no particular order, and what cannot be read, with the reason.

        Raises:
            PackError: The source itself cannot be read.
        """

    def classes(self) -> Collection[bytes]:
        """Names of classes that count even without an image, once the records are read."""
        return ()

    @property
    def base(self) -> Source:
        """The source that finds the images: another one where this one changes their labels alone."""
        return self

    @property
    def task_root(self) -> str:
        """Base of the records' relative paths for the packing of shards."""
        return self.root

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by number, once the records are read; empty if the labels name them."""
        return ()

    def notes(self) -> Iterator[str]:
        """Lines about what was left out, once the records are read."""
        return self.selection.notes()


def path_fault(path: bytes, name: bytes = b"") -> str:
    """Why a listed path, or the name beside it, is invalid; empty if both are valid."""
    if not path:
        return "bad row: no path"
    if b"\0" in name:
        return "bad row: the name holds a zero byte"
    return "bad row: the path holds a zero byte" if b"\0" in path else ""
