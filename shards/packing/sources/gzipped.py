"""Tars that are compressed by gzip: read forwards to see what is in them, and unpacked before they are packed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from shards.errors import PackError
from shards.format.manifest import Quarantined
from shards.format.tar_reader import TarInput
from shards.packing.sources.folder import NamedFiles
from shards.packing.sources.record import Record
from shards.packing.sources.selection import Selection
from shards.packing.sources.tars import TarSource
from shards.storage.places import joined
from shards.storage.store import open_place
from shards.words import counted, display, human_bytes

inflating: Any = zlib
with contextlib.suppress(ImportError):  # the extra `zip`: the same bytes, sooner
    from zlib_ng import zlib_ng as inflating

_CHUNK = 1 << 20
_STEP = 1 << 16  # bytes of a compressed file that are read at a time
_FINE = 64  # and near damage
_GZIP = 16 + zlib.MAX_WBITS  # a gzip header, and its checksum
_NAMES = (".tar.gz", ".tgz")
END = ".end"  # what is added to the name of an unpacked tar for the file that says that it is complete


class Unzipped(TarInput):
    """What a file compressed by gzip holds, read forwards.

    Attributes:
        fault: How the file is damaged, once its end or the damage is reached; empty if it is not.
    """

    def __init__(self, file: BinaryIO) -> None:
        # not TarInput's, which seeks to the end to learn the size
        self._file, self._place, self.last, self.size = file, 0, b"", None
        self._member = inflating.decompressobj(_GZIP)
        self._left = memoryview(b"")
        self.fault = ""

    def chunk(self, most: int = _CHUNK) -> bytes:
        """The next bytes, `most` at most; none at the end, or at the damage."""
        if not self._left:
            found = self._next()
            if len(found) <= most:
                return found
            self._left = memoryview(found)
        part, self._left = bytes(self._left[:most]), self._left[most:]
        return part

    def several(self) -> list[bytes]:
        """The next bytes in parts, about a megabyte of them; none at the end, or at the damage."""
        parts, size = [], 0
        while size < _CHUNK and (part := self.chunk()):
            parts.append(part)
            size += len(part)
        return parts

    def _next(self) -> bytes:
        """The next bytes. What is lost with damage does not depend on how much is asked for, so steps are fixed."""
        while not self.fault:
            if self._member.eof:
                data = self._member.unused_data.lstrip(b"\0") or self._file.read(_STEP).lstrip(b"\0")
                if not data:
                    return b""
                self._member = inflating.decompressobj(_GZIP)  # files may be joined
            else:
                data = self._member.unconsumed_tail or self._file.read(_STEP)
            before = self._member.copy()
            try:
                if found := self._member.decompress(data, _CHUNK):
                    return found
            except inflating.error as error:
                self.fault = f"damaged: {error}"
                return _before_damage(before, data)
            if not data and not self._member.eof:
                self.fault = "truncated: the compressed data end early"
        return b""

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes; fewer only at the end."""
        parts, left = [], size
        while left and (part := self.chunk(min(left, _CHUNK) if left > 0 else _CHUNK)):
            parts.append(part)
            left -= len(part) if left > 0 else 0
        self.last = parts[0] if len(parts) == 1 else b"".join(parts)
        self._place += len(self.last)
        return self.last

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        """Move forwards, by reading."""
        if whence != os.SEEK_SET or place < self._place:
            raise io.UnsupportedOperation(f"cannot seek back from byte {self._place} to {place}")
        while self._place < place and (part := self.chunk(min(_CHUNK, place - self._place))):
            self._place += len(part)
        return self._place


def _before_damage(member: Any, data: bytes) -> bytes:
    """What comes before the damage, to within a few bytes: an error loses the output of its whole step."""
    parts = []
    with contextlib.suppress(inflating.error):
        for place in range(0, len(data), _FINE):
            parts.append(member.decompress(data[place : place + _FINE]))
    return b"".join(parts)


class GzippedTars(TarSource):
    """Images in compressed tars.

    Args:
        place: See TarSource.
        selection: See TarSource.
        label_key: See TarSource.

    Attributes:
        unpacked: Folder with the unpacked tars, under the names of the compressed ones; None: the tars are read
            forwards, which takes as long.
    """

    kind = "targz"
    extensions = (b"gz", b"tgz")

    def __init__(self, place: str, selection: Selection | None = None, label_key: str = "") -> None:
        super().__init__(place, selection, label_key)
        self.unpacked: str | None = None

    @property
    def task_root(self) -> str:
        """See Source.task_root."""
        return self.root if self.unpacked is None else self.unpacked

    def files(self) -> list[tuple[bytes, int]]:
        """Paths and sizes of the tars."""
        if self._single is not None:
            with open_place(joined(self.root, self._single)) as file:
                return [(os.fsencode(self._single), file.seek(0, os.SEEK_END))]
        counting_nothing = Selection(tuple(self.selection.excluded), self.selection.include_hidden)
        found = NamedFiles(self.root, *self.extensions, selection=counting_nothing)
        return sorted(
            (each.path, each.size)
            for each in found.records()
            if isinstance(each, Record) and os.fsdecode(each.path).lower().endswith(_NAMES)
        )

    def reading_text(self) -> str:
        """How the tars are read."""
        files = self.files()
        size = human_bytes(sum(size for _, size in files))
        tars = counted(len(files), "compressed tar")
        return f"{tars}: the output needs at least {size} more, for unpacked ones, until the set is complete"

    def _archive(self, path: bytes) -> Iterator[Record | Quarantined]:
        if self._single is None and not os.fsdecode(path).lower().endswith(_NAMES):
            self.ignored += 1
            return
        yield from super()._archive(path)

    def _read(self, path: bytes, place: str) -> Iterator[Record | Quarantined]:
        if self.unpacked is not None:
            place = joined(self.unpacked, os.fsdecode(path))
            with open_place(place + END) as file:
                fault = json.load(file)["fault"]
            yield from self._with_fault(super()._read(path, place), path, fault)
            return
        with open_place(place) as file:
            tar = Unzipped(file)
            contents = self._contents(tar)
            if contents.tars and not contents.images:
                raise PackError(f"{display(place)} holds tars; unpack it by gunzip, as a dry run cannot look into them")
            while tar.read(_CHUNK):  # the checksum is at the end
                pass
            found = self._with_fault(self._found(path, contents), path, tar.fault)
            for each in found:
                # Without the size of the tar, an image that it does not hold to its end was read like others.
                if isinstance(each, Quarantined) or each.offset + each.size <= tar.tell():
                    yield each

    def _with_fault(
        self, found: Iterator[Record | Quarantined], path: bytes, fault: str
    ) -> Iterator[Record | Quarantined]:
        """What was found, with the damage of the compressed data in place of the tar's, which follows from it."""
        for each in found:
            if not (fault and isinstance(each, Quarantined) and each.source == display(path)):
                yield each
        if fault:
            self._damaged[:] = [text for text in self._damaged if not text.startswith(f"{display(path)}: ")]
            yield self._damage(display(path), fault)
