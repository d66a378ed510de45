"""Members of tars written by other programs, read in order.

Packing from tars, `fastmoco index` and `--stream` all use this module and `members`, so they find the same images
with the same keys. The rules are in docs/format.md.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from collections.abc import Generator, Iterator
from typing import BinaryIO

from shards.format.hidden import group_of, hidden_part, summary
from shards.format.layout import BLOCK, padded
from shards.format.members import Member
from shards.format.tar_headers import FILE, TIME, is_time, plain_header
from shards.words import display

_LINK = "link: not a regular file of the tar"
_SPARSE = "sparse: the tar stores it in pieces; write the tar without --sparse"


class DamagedTar(Exception):
    """A tar is damaged or truncated; the message says how and where, as `cause: detail`."""


class TarInput(io.RawIOBase):
    """The input of `TarReader`, over a seekable file.

    Args:
        file: The file.
        start: Offset of the tar in it.
        size: Size of the tar; None: as far as the file goes.

    Attributes:
        last: What the last `read` returned.
        size: Size of the file in bytes; None if unknown.
    """

    def __init__(self, file: BinaryIO, start: int = 0, size: int | None = None) -> None:
        self._file, self._start, self._place, self.last = file, start, 0, b""
        self.size: int | None = file.seek(0, io.SEEK_END) if size is None else size
        file.seek(start)

    def tell(self) -> int:
        """Offset of the next byte."""
        return self._place

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        """Move to an absolute offset."""
        self._file.seek(self._start + place)
        self._place = place
        return place

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes; fewer only at the end."""
        if self.size is not None:
            left = max(0, self.size - self._place)
            # Python allocates as much as is asked for, and a header may ask for all
            size = left if size < 0 else min(size, left)
        self.last = self._file.read(size)
        self._place += len(self.last)
        return self.last


class _FromHere(io.RawIOBase):
    """A `TarInput` from its place minus bytes that have been read already."""

    def __init__(self, file: TarInput, before: bytes) -> None:
        self._file, self._before = file, before

    def tell(self) -> int:
        return self._file.tell() - len(self._before)

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        # Only to what follows the header, which is read first.
        self._before = b""
        return self._file.seek(place, whence)

    def read(self, size: int = -1) -> bytes:
        if not self._before:
            return self._file.read(size)
        part, self._before = self._before[:size], self._before[size:]
        self._file.last = part + self._file.read(size - len(part)) if len(part) < size else part
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
        block = yield from self._plain(block)
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
            self._check_whole(name, info.offset_data + stored)
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

    def _plain(self, block: bytes) -> Generator[Member, None, bytes]:
        """The members with plain headers, as far as the first other one, which is returned, with what belongs to it."""
        file = self._file
        block = block or file.read(BLOCK)
        while True:
            header = plain_header(block)
            if header is not None and header.kind == TIME:
                block += file.read(2 * BLOCK)
                header = plain_header(block[2 * BLOCK :]) if is_time(header, block[BLOCK : 2 * BLOCK]) else None
            if header is None or header.kind == TIME:
                return block
            offset = file.tell()
            self._check_whole(header.name, offset + header.size)
            if header.kind == FILE:
                member = Member(header.name, offset, header.size, "")
                if self._is_skipped(member):
                    self.passed_over += 1
                else:
                    yield member
            end = offset + padded(header.size)
            if file.tell() == end:
                block = file.read(BLOCK)
                continue
            # With the byte before it, which shows whether the member is whole.
            file.seek(end - 1)
            found = file.read(1 + BLOCK)
            if not found:
                raise DamagedTar(f"truncated: it ends at byte {file.tell():,}, within a member")
            block = found[1:]

    def _check_whole(self, name: bytes, end: int) -> None:
        """Raise DamagedTar if the file is known to end before a member does."""
        if self._file.size is not None and end > self._file.size:
            raise DamagedTar(f"truncated: it ends at byte {self._file.size:,}, within {display(name)}")

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
