"""Reading an image that is part of a file: a member of a tar or zip, by the range of its bytes, or a keyed value."""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from shards.images.encode import Rejected
from shards.images.options import MAX_FILE
from shards.packing.keyed import Values
from shards.packing.plan import Entry
from shards.storage.places import joined

try:
    import deflate
except ImportError:  # the extra `zip`: the same bytes, sooner
    deflate = None

_crc32 = zlib.crc32 if deflate is None else deflate.crc32
_Data = TypeVar("_Data", bytes, memoryview)
Read = Callable[[int, int], bytes]
"""Bytes [start, end) of the file; fewer if it ends first."""
# Of a zip's member: signature, flags, method, CRC, size as stored, size of the file, lengths of name and extra fields.
_HEADER = struct.Struct("<4s2xHH4xIII2H")
_EXTRA = 64  # bytes of extra fields that are read with a header; programs write 0 to 36
_LATER = 1 << 3  # flag: CRC and sizes follow the data
STORED, DEFLATED = 0, 8


@contextlib.contextmanager
def reader_of(kind: str, root: str) -> Iterator[Callable[[Entry, Read], bytes]]:
    """How members are read from the files of a source of that kind, whose relative paths have that root."""
    if kind == "lmdb":
        with Values() as values:
            yield lambda entry, _: values.get(joined(root, os.fsdecode(entry.where)), entry.member)
        return
    yield unzipped if kind == "zips" else as_stored


def as_stored(entry: Entry, read: Read) -> bytes:
    """The bytes at the entry's offset.

    Raises:
        Rejected: The file ends first.
    """
    return _whole(read(entry.offset, entry.offset + entry.size), entry.size, "tar")


def unzipped(entry: Entry, read: Read) -> bytes:
    """A member of a zip: the entry's offset is that of its header, its size that of the data as they are stored.

    Raises:
        Rejected: The data are damaged or truncated, or too large.
    """
    # One request for header and data; how long the header is, only itself says.
    guess = _HEADER.size + len(entry.member) + _EXTRA
    found = read(entry.offset, entry.offset + guess + entry.size)
    if len(found) < _HEADER.size or not found.startswith(b"PK\3\4"):
        raise Rejected(f"damaged: no member at byte {entry.offset:,} of the zip")
    _, flags, method, crc, _, size, name, extra = _HEADER.unpack_from(found)
    start = _HEADER.size + name + extra
    if start > guess:
        found += read(entry.offset + len(found), entry.offset + start + entry.size)
    stored = _whole(memoryview(found)[start : start + entry.size], entry.size, "zip")
    data = _inflated(stored, 0 if flags & _LATER else size) if method == DEFLATED else bytes(stored)
    if len(data) > MAX_FILE:
        raise Rejected(f"too large: a file of more than {MAX_FILE:,} bytes")
    if not flags & _LATER and _crc32(data) != crc:
        raise Rejected("damaged: its checksum differs from the zip's")
    return data


def _inflated(stored: memoryview, size: int) -> bytes:
    """The data of a member. `size` is its length in bytes as the zip says, or 0 if the zip does not say."""
    # libdeflate takes three quarters of zlib's time, and zlib-ng four fifths.
    if deflate is not None and 0 < size <= MAX_FILE:
        try:
            return bytes(deflate.deflate_decompress(stored, size))
        except deflate.DeflateError:  # zlib says what is wrong with it
            pass
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflater.decompress(stored, MAX_FILE + 1)
    except zlib.error as error:
        raise Rejected(f"damaged: cannot be inflated ({str(error).rpartition(': ')[2]})") from None
    if not inflater.eof and len(data) <= MAX_FILE:
        raise Rejected("damaged: its compressed data end early")
    return data


def _whole(data: _Data, size: int, archive: str) -> _Data:
    if len(data) < size:
        raise Rejected(f"truncated: {len(data):,} of {size:,} bytes are in the {archive}")
    return data
