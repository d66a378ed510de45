"""Reads an image's bytes, and tells a damaged image from one that was damaged on its way."""

from __future__ import annotations

import errno
import logging
import zlib
from collections.abc import Callable

import numpy as np

from shards.format.manifest import ShardRecord
from shards.storage.access import Access

_EQUAL, _READS = 3, 8  # reads of an image with the same fault, one after the other, that convict it; reads at most
_IMAGES = {8: ("JPEG", b"\xff\xd8", b"\xff\xd9"), 16: ("PNG", b"\x89PNG", b"IEND\xaeB`\x82")}  # how they begin, end

Fault = Callable[[bytes, np.void, int], str]
"""Why bytes are not the image of a row (ROW) of a set of that many bits; empty if they are."""

log = logging.getLogger("shards")


def read_image(access: Access, record: ShardRecord, entry: np.void, fault: Fault, bits: int) -> tuple[bytes, str]:
    """An image's bytes, and what is wrong with them. Only the same bytes, read again and again, are the image's fault.

    Args:
        access: Reads the shard's tar.
        record: The shard's.
        entry: The image's row, ROW.
        fault: `incomplete` or `differing`.
        bits: Of the set's images, 8 or 16.

    Raises:
        OSError: The tar cannot be read, or gives other bytes each time.
    """
    name, offset, size = f"{record.name}.tar", int(entry["offset"]), int(entry["size"])
    data = access.pread(name, record.bytes, offset, size, record.sha256)
    cause = fault(data, entry, bits)
    if not cause:
        return data, ""
    # The copy in the node's cache may be damaged (it is not synced), or the bytes on their way.
    equal = 1
    for _ in range(_READS - 1):
        before, data = data, access.reread(name, offset, size)
        cause = fault(data, entry, bits)
        if not cause:
            log.warning("a part of %s was damaged in the cache or on its way, and is read again", name)
            return data, ""
        equal = equal + 1 if data == before else 1
        if equal == _EQUAL:
            return data, cause
    raise OSError(errno.EIO, "each time it gives other bytes")


def incomplete(data: bytes, entry: np.void, bits: int) -> str:
    """A `Fault` that costs nothing: by the few bytes that tell a hole or a shifted tar."""
    size = int(entry["size"])
    if len(data) != size:
        return f"the tar ends after {len(data)} of the image's {size} bytes"
    name, begin, end = _IMAGES[bits]
    if not (data.startswith(begin) and data.endswith(end)):
        return f"the {size} bytes at {int(entry['offset'])} are not a complete {name}: the tar is damaged"
    return ""


def differing(data: bytes, entry: np.void, bits: int) -> str:
    """A `Fault`: `incomplete`, or not the bytes that were packed."""
    cause = incomplete(data, entry, bits)
    if not cause and zlib.crc32(data) != int(entry["crc32"]):
        return "the bytes differ from those packed (CRC-32)"
    return cause
