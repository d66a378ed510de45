"""Which samples of a tar are damaged, and its rows as the tar itself has them."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image

from shards.format.index import ROW
from shards.format.layout import BLOCK, padded, sample_key
from shards.format.levels import add_image
from shards.format.manifest import ShardRecord
from shards.format.writer import extension, tar_header
from shards.images import deep
from shards.images.encode import Rejected, encode
from shards.images.options import EncodeOptions

KeyOf = Callable[[int], str]  # key of a row


@dataclass(frozen=True)
class Problem:
    """One difference from what was packed: file, key if it concerns a single sample, and cause."""

    file: str
    key: str | None
    cause: str

    def __str__(self) -> str:
        key = f" key {self.key}" if self.key else ""
        return f"{self.file}{key}: {self.cause}"


def damaged_samples(
    file: BinaryIO, record: ShardRecord, numbered: bool, keys: KeyOf, rows: np.ndarray | None
) -> Iterator[Problem]:
    """The differences in a tar whose hash does not match.

    Args:
        file: The tar.
        record: Its record.
        numbered: Whether fastmoco packed it, so that its headers and labels are known as well.
        keys: Key of a row.
        rows: Its rows, or None if they are lost.
    """
    name, size = f"{record.name}.tar", file.seek(0, io.SEEK_END)
    if size != record.bytes:
        yield Problem(name, None, f"has {size:,} bytes, should have {record.bytes:,}")
    for row, fields in enumerate([] if rows is None else rows.tolist()):
        kind = extension(bool(record.levels_sha256))
        cause = _damage_around(file, int(record.name[-6:]), row, fields, kind) if numbered else _damage(file, fields)
        if cause:
            yield Problem(name, keys(row), cause)


def _damage(file: BinaryIO, fields: tuple[int, ...]) -> str:
    """Damage to the image of a row; empty if it is intact."""
    data = read_at(file, fields[0], fields[1])
    if len(data) != fields[1]:
        return "the tar ends before or within this sample"
    return "" if zlib.crc32(data) == fields[5] else "the image's bytes differ from those packed (CRC-32)"


def _damage_around(file: BinaryIO, shard: int, row: int, fields: tuple[int, ...], kind: str) -> str:
    """Damage to a sample as `ShardWriter` writes it: header, image, padding, label; empty if it is intact."""
    offset, length, _, _, label, _ = fields
    key = sample_key(shard, row)
    text = b"" if label < 0 else str(label).encode()
    tail = bytes(padded(length) - length)
    if label >= 0:
        tail += tar_header(f"{key}.cls", len(text)) + text + bytes(BLOCK - len(text))
    # The image first: its header and label are of no use without it, and a sample is reported once.
    cause = _damage(file, fields)
    if cause:
        return cause
    if read_at(file, max(0, offset - BLOCK), BLOCK) != tar_header(f"{key}.{kind}", length):
        return "the tar header before the image is damaged"
    found = read_at(file, offset + length, len(tail))
    if len(found) != len(tail):
        return "the tar ends before or within this sample"
    return "" if found == tail else "the label after the image is damaged"


def undecodable_samples(file: BinaryIO, name: str, keys: KeyOf, rows: np.ndarray) -> Iterator[Problem]:
    """JPEGs that cannot be fully decoded, or whose size differs from their row."""
    for row, (offset, size, width, height, *_) in enumerate(rows.tolist()):
        data = read_at(file, offset, size)
        try:
            # With the widest limits, not those of the packing: an image that was packed is never too large now.
            found = encode(data, EncodeOptions(check=True))
        except Rejected as rejected:
            yield Problem(name, keys(row), f"cannot be decoded: {rejected}")
            continue
        if (found.width, found.height) != (width, height):
            right = f"{found.width} x {found.height} pixels"
            yield Problem(name, keys(row), f"decodes to {right}, but its row says {width} x {height}")
        elif found.data != data:
            yield Problem(name, keys(row), "is not an upright, baseline or progressive, 8-bit RGB or grey JPEG")


def undecodable_deep_samples(
    file: BinaryIO, name: str, keys: KeyOf, rows: np.ndarray, levels: np.ndarray
) -> Iterator[Problem]:
    """PNGs of 16 bits that cannot be fully decoded, or whose size differs from their row.

    Args:
        file: The tar.
        name: Its file name.
        keys: Key of a row.
        rows: Its rows.
        levels: int64[4, 65536], to which the values of the others are added.
    """
    for row, (offset, size, width, height, *_) in enumerate(rows.tolist()):
        try:
            add_image(levels, deep.counts(deep.decoded(read_at(file, offset, size), width, height)))
        except Rejected as rejected:
            yield Problem(name, keys(row), str(rejected))


def rows_of_tar(file: BinaryIO) -> np.ndarray:
    """ROW[N] of an intact tar of KEY.jpg (or KEY.png) and KEY.cls members, rebuilt from the tar itself."""
    rows: list[list[int]] = []
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            data = read_at(file, member.offset_data, member.size)
            if member.name.endswith(".cls"):
                rows[-1][4] = int(data)  # ShardWriter writes a label directly after its image
            else:
                with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
                    width, height = image.size
                rows.append([member.offset_data, len(data), width, height, -1, zlib.crc32(data)])
    return np.array([tuple(row) for row in rows], dtype=ROW)


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """`size` bytes at `offset`; fewer if the file ends first."""
    file.seek(offset)
    return file.read(size)
