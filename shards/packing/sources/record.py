"""What a source is: a stream of records, and of what it had to leave out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

from shards.format.manifest import Quarantined


class Record(NamedTuple):
    """One image of a source.

    Attributes:
        path: Path as the source names it, below the source's root, or absolute, or a URL; of a tar for a member.
        size: Bytes of the image's file; -1: not known.
        label: Name of its class, or its number in decimal digits; None: no label.
        member: Name of the image in the tar at `path`; empty for a file of its own.
        offset: Place of a member's first byte in the tar; -1 for a file of its own.
    """

    path: bytes
    size: int = -1
    label: bytes | None = None
    member: bytes = b""
    offset: int = -1


class Source(ABC):
    """Where the images come from.

    Attributes:
        kind: `folder`, `list`, `csv`, `parquet` or `tars`.
        root: Local folder or URL that the records' paths are relative to.
        ignored: Files of other kinds that were passed over; counted while the records are read.
        least_classes: With fewer classes than these the images have no labels.
        numbered: Whether a class whose name is a number has that number for its label.
    """

    kind: str
    root: str
    ignored: int = 0
    least_classes: int = 1
    numbered: bool = True

    @abstractmethod
    def records(self) -> Iterator[Record | Quarantined]:
        """All images in no particular order, and what cannot be read with the reason.

        Raises:
            PackError: The source itself cannot be read.
        """


def label_name(text: bytes) -> bytes | None:
    """A label as the source gives it; nothing and -1 mean that there is none."""
    return None if text in (b"", b"-1") else text


def path_fault(path: bytes) -> str:
    """Why a listed path cannot be one; empty where it can."""
    if not path:
        return "bad row: no path"
    return "bad row: the path holds a zero byte" if b"\0" in path else ""
