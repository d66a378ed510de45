"""The index of one existing tar: rows, `.idx`, and the reasons for what cannot be used."""

from __future__ import annotations

import errno
import io
import warnings
import zlib
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
from PIL import Image

from shards.format.contents import Contents
from shards.format.index import ROW, idx_text
from shards.format.manifest import Quarantined
from shards.format.members import Member
from shards.images.encode import Encoded, Rejected, encode
from shards.images.formats import FORMATS
from shards.images.jpeg import START, read_header
from shards.images.options import MAX_FILE, EncodeOptions
from shards.images.plugins import kind_of
from shards.images.tiff import read_tiff
from shards.words import display

REPACK = "needs converting"  # cause for images that packing, unlike indexing, can use


@dataclass
class TarIndex:
    """What indexing found in a tar.

    Attributes:
        rows: ROW[N], in the tar's order; `label` is an index into `names`, or -1 for none.
        names: Labels as the tar spells them, in order of appearance.
        idx: Content of the `.idx` file.
        left_out: Images and keys that cannot be used, and damage to the tar itself.
        notes: The damage, and what was skipped as hidden, for messages.
        channels: 1 if all images are grey, else 3.
    """

    rows: np.ndarray
    names: list[str]
    idx: bytes
    left_out: list[Quarantined]
    notes: list[str]
    channels: int


@dataclass
class _Reading:
    """The state of an indexing of one tar."""

    file: BinaryIO
    name: str
    contents: Contents
    encoding: EncodeOptions
    rows: list[tuple[int, ...]] = field(default_factory=list)
    samples: dict[bytes, Member] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    left_out: list[Quarantined] = field(default_factory=list)
    channels: int = 1

    def bytes_of(self, member: Member) -> bytes:
        """A member's data; Rejected if it is not a regular file."""
        if member.fault:
            raise Rejected(member.fault)
        if member.size > MAX_FILE:
            raise Rejected(f"too large: a member of {member.size:,} bytes")
        self.file.seek(member.offset)
        data = self.file.read(member.size)
        if len(data) != member.size:
            raise OSError(errno.EIO, "the file was truncated while it was read", self.name)
        return data

    def report(self, name: bytes, reason: str) -> None:
        """Leave something out."""
        self.left_out.append(Quarantined(f"{display(self.name)}/{display(name)}", reason))


def index_tar(file: BinaryIO, name: str, check: bool) -> TarIndex:
    """Index a tar.

    Args:
        file: The tar.
        name: Its file name.
        check: Decode all images, so that damaged ones are left out.

    Raises:
        OSError: The tar cannot be read.
    """
    contents = Contents.read(file)
    reading = _Reading(file, name, contents, EncodeOptions(check=check))
    if contents.damage:
        reading.left_out.append(Quarantined(display(name), contents.damage))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata and of large images
        _take_images(reading)
    rows = np.array(reading.rows, dtype=ROW)
    idx = _idx(contents, reading.samples)
    notes = [contents.damage] if contents.damage else []
    if contents.hidden:
        notes.append(f"left out {contents.hidden_text}")
    return TarIndex(rows, list(reading.names), idx, reading.left_out, notes, reading.channels)


def idx_of_tar(file: BinaryIO, rows: np.ndarray) -> bytes:
    """The `.idx` of a tar whose ROW[N] are known; images are not read.

    Raises:
        ValueError: A row points to no member.
    """
    contents = Contents.read(file)
    images = contents.by_offset()
    try:
        found = [images[offset] for offset in rows["offset"].tolist()]
    except KeyError as error:
        raise ValueError(f"no member begins at byte {error}") from None
    return _idx(contents, {image.key: image for image in found})


def _idx(contents: Contents, samples: dict[bytes, Member]) -> bytes:
    return idx_text([contents.components(image, samples.keys()) for image in samples.values()])


def _take_images(reading: _Reading) -> None:
    contents = reading.contents
    for image in contents.images:
        try:
            data = reading.bytes_of(image)
            # Before `encode`, which would convert a PNG only for it to be refused.
            if data and not data.startswith(START) and (kind := _format(data)):
                raise Rejected(f"{REPACK}: {kind}")
            found = encode(data, reading.encoding)
            # A prefix is enough: `encode` cuts off what follows the end marker, and the row's size leaves it out.
            if not data.startswith(found.data):
                raise Rejected(f"{REPACK}: {_difference(data)}")
            _take(reading, image, found)
        except Rejected as rejected:
            reading.report(image.name, str(rejected))
    for image, reason in contents.duplicates:
        reading.report(image.name, reason)
    for key, extensions in contents.without_image():
        reading.report(key, f"no image: {display(b', '.join(extensions))} alone")


def _take(reading: _Reading, image: Member, found: Encoded) -> None:
    try:
        name = reading.contents.label(image)
    except ValueError as error:
        raise Rejected(str(error)) from None
    label = -1 if name is None else reading.names.setdefault(name, len(reading.names))
    size = len(found.data)  # up to the end marker; the `.idx` has the size of the member, as DALI expects it
    reading.rows.append((image.offset, size, found.width, found.height, label, zlib.crc32(found.data)))
    reading.samples[image.key] = image
    reading.channels = max(reading.channels, found.channels)


def _format(data: bytes) -> str:
    """Format of an image; empty if it is not one that can be packed."""
    kind = kind_of(data, read_tiff(data))
    if kind:
        return kind
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.format or ""
    except Exception:  # decoders raise any type on malformed input; `encode` finds the cause
        return ""


def _difference(data: bytes) -> str:
    """Why a decodable image cannot be used unchanged."""
    header = read_header(data)
    if header is None:
        return "another format"
    if header.components == 4:
        return "a JPEG of mode CMYK"
    if header.orientation != 1:
        return f"EXIF orientation {header.orientation}"
    return "a JPEG of unusual coding" if header.standard else "a header that not every decoder reads alike"
