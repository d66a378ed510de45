"""The members of other programs' tars, read forwards, and which of them are images.

Packing from tars, `fastmoco-shard index` and `--stream` all read tars by this module, so that they find the same
images under the same keys. docs/format.md gives the rules.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import BinaryIO

from shards.format import labels
from shards.format.layout import BLOCK
from shards.images.formats import EXTENSIONS
from shards.words import display

NOT_REGULAR = "link: not a regular file of the tar"
_JPEG = frozenset((b"jpg", b"jpeg", b"jpe", b"jfif", b"jif"))
_CHUNK = 1 << 20


class DamagedTar(Exception):
    """A tar is damaged or cut off; the text says how and where, as `cause: detail`."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a tar: name, place and length of its data, and whether the data are there in one piece."""

    name: bytes
    offset: int
    size: int
    regular: bool = True

    @property
    def key(self) -> bytes:
        """Name without its last extension."""
        return self.name[: self.name.rindex(b".")]

    @property
    def short_key(self) -> bytes:
        """Name up to the first dot after its folders: WebDataset's key."""
        return self.name[: self.name.index(b".", self.name.rfind(b"/") + 1)]

    @property
    def extension(self) -> bytes:
        """Last extension, without the dot, as it is written."""
        return self.name[self.name.rindex(b".") + 1 :]

    @property
    def is_image(self) -> bool:
        """Whether the extension is an image's."""
        return self.extension.lower() in EXTENSIONS

    @property
    def is_jpeg(self) -> bool:
        """Whether the extension is a JPEG's."""
        return self.extension.lower() in _JPEG

    @property
    def is_label(self) -> bool:
        """Whether the member may hold a label."""
        return self.extension in labels.EXTENSIONS


class TarInput(io.RawIOBase):
    """A tar as `TarReader` needs it, over a file that can be sought in.

    Attributes:
        last: What the last `read` returned.
        size: Bytes of the file; None where they are not known.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._place, self.last = file, 0, b""
        self.size: int | None = file.seek(0, io.SEEK_END)
        file.seek(0)

    def tell(self) -> int:
        """Place of the next byte."""
        return self._place

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place counted from the start."""
        self._file.seek(place)
        self._place = place
        return place

    def read(self, size: int = -1) -> bytes:
        """`size` bytes; fewer at the end only."""
        self.last = self._file.read(size)
        self._place += len(self.last)
        return self.last


class TarReader:
    """Members of a tar in order, each of which may be read before the next one is asked for.

    Folders, hidden files, names without an extension and WebDataset's `__x__` are passed over.

    Attributes:
        passed_over: Number of files that were.
    """

    def __init__(self, file: TarInput) -> None:
        self._file = file
        self.passed_over = 0

    def __iter__(self) -> Iterator[Member]:
        """The members that are whole.

        Raises:
            DamagedTar: After these: what follows is damaged or missing, or there is no end mark.
            OSError: The tar cannot be read.
        """
        archive: tarfile.TarFile | None = None
        end = 0
        while True:
            try:
                if archive is None:
                    archive = tarfile.open(  # noqa: SIM115 (closing it would close nothing)
                        fileobj=self._file, mode="r:", encoding="utf-8", errors="surrogateescape"
                    )
                info = archive.next()
            except (tarfile.TarError, ValueError, OverflowError) as error:  # a damaged size may be any number
                raise DamagedTar(self._cause(error, end)) from None
            archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
            if info is None:
                break
            if archive.offset <= end:
                raise DamagedTar(f"damaged: the header at byte {info.offset:,} points back")
            end = archive.offset
            name = info.name.encode("utf-8", "surrogateescape")
            if self._file.size is not None and info.offset_data + info.size > self._file.size:
                raise DamagedTar(f"truncated: it ends at byte {self._file.size:,}, within {display(name)}")
            if _counts(name) and not info.isdir():
                yield Member(name, info.offset_data, info.size, info.isreg() and not info.issparse())
            else:
                self.passed_over += not info.isdir()
        self._check_end()

    def read(self, member: Member) -> bytes:
        """Data of the member that the iteration is at.

        Raises:
            DamagedTar: The tar ends within them.
            OSError: The tar cannot be read.
        """
        self._file.seek(member.offset)
        data = self._file.read(member.size)
        if len(data) < member.size:
            raise DamagedTar(f"truncated: it ends at byte {self._file.tell():,}, within {display(member.name)}")
        return data

    def _cause(self, error: Exception, end: int) -> str:
        if not end:
            return f"damaged: not a tar ({error})"
        if not self._file.last:
            return f"truncated: it ends at byte {self._file.tell():,}, within a member"
        return f"damaged: {error}, behind byte {end:,}"

    def _check_end(self) -> None:
        """Raise DamagedTar where the headers did not end with the end mark; tarfile stops there without an error."""
        file = self._file
        at = file.tell() - len(file.last)
        if len(file.last) < BLOCK:
            raise DamagedTar(f"truncated: it ends at byte {file.tell():,} without an end mark")
        if file.last.strip(b"\0"):
            raise DamagedTar(f"damaged: no tar header at byte {at:,}, and nothing after it was read")
        while chunk := file.read(_CHUNK):
            if chunk.strip(b"\0"):
                raise DamagedTar(f"damaged: data follow its end mark at byte {at:,}, and none of them were read")


def _counts(name: bytes) -> bool:
    base = name[name.rfind(b"/") + 1 :]
    return b"." in base and not base.startswith((b".", b"__"))


def samples_of(members: Iterable[Member]) -> Iterator[Iterator[Member]]:
    """Members that follow one another with the same short key; each sample is used up before the next is asked for."""
    for _, sample in groupby(members, key=attrgetter("short_key")):
        yield sample


class ImageFinder:
    """Which members of one tar are images of their own; decided sample by sample, so that it can be read forwards.

    A sample's image is `KEY.EXTENSION`: the first JPEG by its name, or else the first image. Where there is none, as
    with `KEY.left.jpg` and `KEY.right.jpg`, each image is a sample. Any other image (a mask, a depth map) is a part of
    the sample whose key it shares, also where it follows later in the tar.
    """

    def __init__(self) -> None:
        self._names: dict[bytes, bytes] = {}  # name of each image found so far, by its key

    def find(self, sample: Iterable[Member]) -> tuple[list[Member], list[tuple[Member, str]]]:
        """The images among the members of the next sample, and duplicates, each with the reason to leave it out.

        A duplicate is a second member of an image's name, or a further JPEG of its key.
        """
        images = [member for member in sample if member.is_image]
        whole = [member for member in images if member.key == member.short_key]
        chosen = ([member for member in whole if member.is_jpeg] or whole)[:1] or images
        found: list[Member] = []
        duplicates: list[tuple[Member, str]] = []
        for member in images:
            other = self._names.get(member.key)
            if other == member.name:
                duplicates.append((member, "duplicate: the tar has a member of this name before it"))
            elif other is not None:
                if member.is_jpeg:
                    duplicates.append((member, f"duplicate: {display(other)} has the same key"))
            elif member.short_key not in self._names and any(member is image for image in chosen):
                self._names[member.key] = member.name
                found.append(member)
        return found, duplicates
