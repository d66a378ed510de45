"""Damaged tars through everything that reads them: index, pack, stream."""

from __future__ import annotations

import functools
import tarfile
from pathlib import Path

import numpy as np

from shards.errors import PackError, StreamError
from shards.foreign import streaming
from shards.foreign.tar_index import index_tar
from shards.format.manifest import Quarantined
from shards.packing.options import PackOptions
from shards.packing.sources import open_source
from tests.fuzz.faults import ACCEPTED, Field, Kind, names_nothing
from tests.fuzz.images import JPEG
from tests.support.tars import Link, Members, tar_bytes

_BLOCK = 512
_CHECKSUM = slice(148, 156)


@functools.cache
def _tars() -> list[bytes]:
    jpeg, grey = JPEG.originals()[:2]
    plain: Members = [("00/a.jpg", jpeg), ("00/a.cls", b"3"), ("00/b.jpg", grey), ("00/b.json", b'{"label": 1}')]
    long: Members = [("folder/" * 20 + "a.jpg", jpeg), ("link.jpg", Link("a.jpg")), ("two.dots.jpg", grey)]
    plains = [tar_bytes(plain, kind) for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
    return [*plains, tar_bytes(long, tarfile.GNU_FORMAT), tar_bytes([*long, ("ä.jpg", grey)], tarfile.PAX_FORMAT)]


def _headers(data: bytes) -> list[int]:
    return [
        place + 257 - 257
        for place in range(0, len(data) - _BLOCK + 1, _BLOCK)
        if data[place + 257 : place + 262] == b"ustar"
    ]


def _of_tar(data: bytes) -> list[Field]:
    return [field for place in _headers(data) for field in (Field(place + 124, "octal"), Field(place + 156, ">B"))]


def _with_sums(data: bytes, _: np.random.Generator) -> bytes:
    result = bytearray(data)
    for place in _headers(data):
        block = bytearray(result[place : place + _BLOCK])
        block[_CHECKSUM] = b" " * 8
        result[place + 148 : place + 156] = b"%06o\0 " % sum(block)
    return bytes(result)


def _tar_outcome(data: bytes, number: int, folder: Path) -> str:
    """A tar to be indexed, packed or streamed; what is left out needs a cause as well."""
    path = folder / "x.tar"
    path.write_bytes(data)
    try:
        if number % 3 == 0:
            with path.open("rb") as file:
                left_out = index_tar(file, path.name, check=True).left_out
        elif number % 3 == 1:
            source = open_source(PackOptions(src=path, out=folder / "out"))
            left_out = [record for record in source.records() if isinstance(record, Quarantined)]
            list(source.notes())
        else:
            left_out = []
            for _ in streaming.images(str(path), delays=()):
                pass
    except (PackError, StreamError) as error:
        return "rejected: " + str(error).replace(str(folder), "")
    wrong = [one for one in left_out if names_nothing(one.reason) or not one.reason]
    if wrong:
        return f"FAULT: left out without a cause: {wrong[0]}"
    return "in part: some was left out" if left_out else ACCEPTED


TAR = Kind(_tars, _of_tar, _with_sums, _tar_outcome)
