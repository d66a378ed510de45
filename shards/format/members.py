"""Members of tars written by other programs, read in order, and which of them are images.

Packing from tars, `fastmoco-shard index` and `--stream` all use this module, so they find the same images with the
same keys. The rules are in docs/format.md.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import BinaryIO

from shards.format import labels
from shards.format.hidden import group_of, hidden_part, summary
from shards.format.layout import BLOCK
from shards.images.formats import EXTENSIONS
from shards.words import display

_LINK = "link: not a regular file of the tar"
_SPARSE = "sparse: the tar stores it in pieces; write the tar without --sparse"
_JPEG = frozenset((b"jpg", b"jpeg", b"jpe", b"jfif", b"jif"))


class DamagedTar(Exception):
    """A tar is damaged or truncated; the message says how and where, as `cause: detail`."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a tar.

    Attributes:
        name: Its path in the tar.
        offset: Offset of its data.
        size: Size of its data.
        fault: Why the data are not the bytes at `offset`: it is a link, or sparse; empty if they are.
    """

    name: bytes
    offset: int
    size: int
    fault: str = ""

    @property
    def key(self) -> bytes:
        """Name without its last extension."""
        return self.name[: self.name.rindex(b".")]

    @property
    def short_key(self) -> bytes:
        """Name up to the first dot after its folders: WebDataset's key. A leading dot is part of it."""
        return self.name[: self.name.index(b".", self.name.rfind(b"/") + 2)]

    @property
    def extension(self) -> bytes:
        """Last extension, without the dot, case kept."""
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
    """The input of `TarReader`, over a seekable file.

    Attributes:
        last: What the last `read` returned.
        size: Size of the file in bytes; None if unknown.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._place, self.last = file, 0, b""
        self.size: int | None = file.seek(0, io.SEEK_END)
        file.seek(0)

    def tell(self) -> int:
        """Offset of the next byte."""
        return self._place

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        """Move to an absolute offset."""
        self._file.seek(place)
        self._place = place
        return place

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes; fewer only at the end."""
        self.last = self._file.read(size)
        self._place += len(self.last)
        return self.last


class _FromHere(io.RawIOBase):
    """A `TarInput` from its place minus a block that has been read already."""

    def __init__(self, file: TarInput, block: bytes) -> None:
        self._file, self._block = file, block

    def tell(self) -> int:
        return self._file.tell() - len(self._block)

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        # Only to what follows the header, which is read first.
        self._block = b""
        return self._file.seek(place, whence)

    def read(self, size: int = -1) -> bytes:
        if not self._block:
            return self._file.read(size)
        self._file.last, self._block = self._block, b""
        return self._file.last


class TarReader:
    """The members of a tar in order; each may be read before the iteration moves on.

    Folders, hidden files and folders, names without an extension and WebDataset's `__x__` are skipped. Tars that were
    joined with `cat` are read as one.

    Args:
        file: The tar.
        include_hidden: Do not skip hidden files and folders.

    Attributes:
        passed_over: Number of files skipped so far.
        hidden: Hidden folders with images, and hidden images, that were skipped: paths, each with whether it is a
            folder.
    """

    def __init__(self, file: TarInput, include_hidden: bool = False) -> None:
        self._file = file
        self._include_hidden = include_hidden
        self.passed_over = 0
        self.hidden: dict[bytes, bool] = {}

    def __iter__(self) -> Iterator[Member]:
        """Yield the complete members, then raise if the tar is damaged.

        Raises:
            DamagedTar: What follows the last complete member is damaged or missing, or there is no end mark.
            OSError: The tar cannot be read.
        """
        block = b""
        while True:
            yield from self._archive(block)
            block = self._next_header()
            if not block:
                return

    def _archive(self, block: bytes) -> Iterator[Member]:
        """The members as far as the next end mark; `block` is the first header if it has been read already."""
        archive: tarfile.TarFile | None = None
        file = _FromHere(self._file, block) if block else self._file
        end = file.tell()
        while True:
            try:
                if archive is None:
                    # "r:" accepts no compression, under which offsets would not be those of the file. Names are decoded
                    # in a way that can be undone, whatever the locale: keys are bytes.
                    archive = tarfile.open(  # noqa: SIM115 (it owns nothing to close)
                        fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape"
                    )
                    # Without a header here, `next` would seek back to look again.
                    if archive.firstmember is None:  # type: ignore[attr-defined]
                        break
                info = archive.next()
            except (tarfile.TarError, ValueError, OverflowError, IndexError) as error:
                # A damaged size may be any number; tarfile does not expect a sparse file's map to be cut off.
                raise DamagedTar(self._cause(error, end)) from None
            archive.members = []  # type: ignore[attr-defined]  # else tarfile keeps every header
            if info is None:
                break
            # A damaged size may be negative: tarfile would read the same headers in an endless loop.
            if archive.offset <= end or info.size < 0:
                raise DamagedTar(f"damaged: the header at byte {info.offset:,} points back")
            end = archive.offset
            name = info.name.encode("utf-8", "surrogateescape")
            # A sparse file is stored in pieces without its runs of zeros.
            parts: list[tuple[int, int]] = [(0, info.size)] if info.sparse is None else info.sparse  # type: ignore
            pieces = [(start, size) for start, size in parts if size]
            # tarfile notices missing data at the next header only, when this member has been yielded.
            stored = sum(size for _, size in pieces)
            if self._file.size is not None and info.offset_data + stored > self._file.size:
                raise DamagedTar(f"truncated: it ends at byte {self._file.size:,}, within {display(name)}")
            if info.isdir():
                continue
            # tar --sparse on file systems that compress (ZFS, Btrfs) writes files without zeros as one piece.
            in_one = pieces == [(0, info.size)] or not info.size
            fault = _LINK if not info.isreg() else "" if in_one else _SPARSE
            member = Member(name, info.offset_data, info.size, fault)
            if self._is_skipped(member):
                self.passed_over += 1
            else:
                yield member
        self._check_end()

    def _is_skipped(self, member: Member) -> bool:
        base = member.name[member.name.rfind(b"/") + 1 :]
        if b"." not in base[1:] or base.startswith(b"__"):
            return True
        part = b"" if self._include_hidden else hidden_part(member.name)
        if part and member.is_image:
            self.hidden[part] = len(part) < len(member.name)
        return bool(part)

    def hidden_text(self) -> str:
        """What was skipped as hidden, for messages; empty if nothing was."""
        return summary(Counter(group_of(part, is_folder) for part, is_folder in self.hidden.items()))

    def read(self, member: Member) -> bytes:
        """Data of the current member.

        Raises:
            DamagedTar: The tar ends within the data.
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
        return f"damaged: {error}, after byte {end:,}"

    def _check_end(self) -> None:
        """Raise DamagedTar if the headers did not end with an end mark; tarfile itself stops without an error."""
        file = self._file
        at = file.tell() - len(file.last)
        if len(file.last) < BLOCK:
            raise DamagedTar(f"truncated: it ends at byte {file.tell():,} without an end mark")
        if file.last.strip(b"\0"):
            raise DamagedTar(f"damaged: no tar header at byte {at:,}, and nothing after it was read")

    def _next_header(self) -> bytes:
        """The first block after the end mark that is not of zeros: of a tar that was appended; empty at the end."""
        while block := self._file.read(BLOCK):
            if block.strip(b"\0"):
                return block
        return b""


def samples_of(members: Iterable[Member]) -> Iterator[Iterator[Member]]:
    """Runs of consecutive members with the same short key; each has to be consumed before the next is requested."""
    for _, sample in groupby(members, key=attrgetter("short_key")):
        yield sample


class ImageFinder:
    """Picks the images of one tar, sample by sample, so that a tar can be read as a stream.

    A sample's image is `KEY.EXTENSION`: the first one with a JPEG's extension, or else the first image. If there is
    none, as with `KEY.left.jpg` and `KEY.right.jpg`, each image is a sample. Any other image (a mask, a depth map) is
    part of the sample whose key it shares, even if it comes later in the tar.
    """

    def __init__(self) -> None:
        self._names: dict[bytes, bytes] = {}  # names of the images found so far, by key

    def find(self, sample: Iterable[Member]) -> tuple[list[Member], list[tuple[Member, str]]]:
        """The images among the members of the next sample, and the duplicates, each with the reason to leave it out.

        A duplicate is a second member with an image's name, or another JPEG with its key.
        """
        images = [member for member in sample if member.is_image]
        whole = [member for member in images if member.key == member.short_key]
        chosen = ([member for member in whole if member.is_jpeg] or whole)[:1] or images
        found: list[Member] = []
        duplicates: list[tuple[Member, str]] = []
        for member in images:
            other = self._names.get(member.key)
            if other == member.name:
                duplicates.append((member, "duplicate: an earlier member has the same name"))
            elif other is not None:
                if member.is_jpeg:
                    duplicates.append((member, f"duplicate: {display(other)} has the same key"))
            elif member.short_key not in self._names and any(member is image for image in chosen):
                self._names[member.key] = member.name
                found.append(member)
        return found, duplicates
