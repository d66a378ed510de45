"""A TIFF's directories, read without decoding: its layout, and whether it is a camera's raw file.

Pillow gives wrong pixels for some layouts without an error, and calls others unreadable.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class _Form:
    """How a file stores numbers: its byte order, and whether it is a BigTIFF, with counts and offsets of 8 bytes."""

    order: Literal["little", "big"]
    wide: bool = False

    @property
    def word(self) -> int:
        """Bytes of an offset, of the number of values, and of values that stand in their entry."""
        return 8 if self.wide else 4

    @property
    def entry(self) -> int:
        """Bytes of an entry: tag, type, number of values, and the values or their offset."""
        return 4 + 2 * self.word

    @property
    def count(self) -> int:
        """Bytes of the number of entries."""
        return 8 if self.wide else 2


_FORMS = {
    b"II*\0": _Form("little"),
    b"MM\0*": _Form("big"),
    b"II+\0": _Form("little", wide=True),
    b"MM\0+": _Form("big", wide=True),
}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 13: 4, 16: 8, 18: 8}  # bytes of BYTE, ASCII, SHORT, LONG, IFD, LONG8 and IFD8
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _MAKE = 254, 256, 257, 258, 259, 262, 271
_SAMPLES, _PLANAR, _SUB_DIRECTORIES, _EXTRA, _FORMAT, _DNG = 277, 284, 330, 338, 339, 50706
_STRIPS, _STRIP_SIZES, _ROWS, _ORIENTATION = 273, 279, 278, 274
_TILES, _TILE_SIZES, _TILE_WIDTH, _TILE_HEIGHT = 324, 325, 322, 323
_USED = frozenset((_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _MAKE, _SAMPLES, _PLANAR))
_PLACES = frozenset((_STRIPS, _STRIP_SIZES, _ROWS, _TILES, _TILE_SIZES, _TILE_WIDTH, _TILE_HEIGHT))
_READ = _USED | _PLACES | {_SUB_DIRECTORIES, _EXTRA, _FORMAT, _DNG, _ORIENTATION}
_MOST_VALUES, _MOST_DIRECTORIES = 64, 16
_COLOUR_FILTER, _LINEAR_RAW = 32803, 34892  # PhotometricInterpretation of a sensor's values
_INVERTED, _GREY, _RGB, _LAB = 0, 1, 2, 8  # PhotometricInterpretation
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3  # SampleFormat
_DEFLATE = (8, 32946)  # Compression
_PLAUSIBLE_BITS = frozenset((1, 2, 4, 6, 8, 10, 12, 14, 16, 24, 32, 64))
_MAKES = {
    b"NIKON": "Nikon NEF",
    b"SONY": "Sony ARW",
    b"CANON": "Canon CR2",
    b"PENTAX": "Pentax PEF",
    b"RICOH": "Pentax PEF",
    b"SAMSUNG": "Samsung SRW",
    b"HASSELBLAD": "Hasselblad 3FR",
    b"EASTMAN KODAK": "Kodak DCR",
}

Directory = dict[int, tuple[int, ...]]
_NO_PAGE = 0b101  # bits of NewSubfileType: a smaller version, and a mask


@dataclass(frozen=True)
class Tiff:
    """Layout of the first picture.

    Attributes:
        width: Pixels.
        height: Pixels.
        raw: Kind of camera raw; empty if it is none.
        big: Big-endian.
        bits: Bits per sample.
        samples: Samples per pixel.
        format: SampleFormat: 1 unsigned, 2 signed, 3 float.
        photometric: PhotometricInterpretation.
        planar: Whether the samples are stored one plane after the other.
        compression: Compression; 1 is none.
        extra: Whether it says what the samples beyond the colours are.
        orientation: As of EXIF, 1 (upright) to 8.
        tile: Pixels of a tile; 0 without tiles.
        several: Whether a second picture follows that is a page, and neither a smaller version nor a mask.
        wide: Whether it is a BigTIFF.
    """

    width: int
    height: int
    raw: str
    big: bool
    bits: int
    samples: int
    format: int
    photometric: int
    planar: bool
    compression: int
    extra: bool
    orientation: int = 1
    tile: int = 0
    several: bool = False
    wide: bool = False

    @property
    def inverted(self) -> bool:
        """Whether 0 is white in a deep grey picture, which Pillow does not heed."""
        return self.photometric == _INVERTED and self.samples == 1 and self.bits > 8

    @property
    def deep(self) -> bool:
        """Whether it is grey or RGB, without alpha, of unsigned 16-bit values."""
        colours = {_INVERTED: 1, _GREY: 1, _RGB: 3}.get(self.photometric)
        return self.bits == 16 and self.format == _UNSIGNED and self.samples == colours and not self.raw

    @property
    def spoilt(self) -> bool:
        """Whether Pillow's decoder gives wrong pixels."""
        wide = self.bits == 32 or (self.bits == 16 and self.format == _SIGNED)
        unnamed_alpha = self.photometric == _RGB and self.samples == 4 and not self.extra
        bands = self.photometric in (_INVERTED, _GREY) and self.samples > 1  # of which the first is taken for the image
        return (
            (self.planar and (self.photometric == _LAB or self.samples == 2 or bands or unnamed_alpha))
            or (self.big and (self.planar or self.compression != 1) and wide)  # swaps the bytes twice
            or (self.bits <= 8 and self.format == _SIGNED)
            or (self.bits == 32 and self.format not in (_SIGNED, _FLOAT))  # taken for signed values
        )

    @property
    def plausible(self) -> bool:
        """Whether a program may have written it, so that it is no damage if a decoder does not read it."""
        return self.bits in _PLAUSIBLE_BITS and self.samples > 0 and 1 <= self.format <= 6

    def __str__(self) -> str:
        kind = {_SIGNED: " signed", _FLOAT: " float"}.get(self.format, "")
        planar = "planar " if self.planar and self.samples > 1 else ""
        form = f"{'big-endian ' if self.big else ''}{'BigTIFF' if self.wide else 'TIFF'}"
        return (
            f"{form} of {planar}{self.bits}-bit{kind} values, {self.samples} a pixel "
            f"(photometric {self.photometric}, compression {self.compression})"
        )


def read_tiff(data: bytes) -> Tiff | None:
    """Layout of a TIFF; None if it is not one, or its first directory has no size or lies outside of the data."""
    form = _FORMS.get(data[:4])
    if form is None:
        return None
    first, following = _directory(data, _first(data, form), form)
    if not (first.get(_WIDTH) and first.get(_HEIGHT)):
        return None

    def value(tag: int, default: int) -> int:
        return first.get(tag, (default,))[0]

    return Tiff(
        width=value(_WIDTH, 0),
        height=value(_HEIGHT, 0),
        raw=_raw(data, first, following, form),
        big=form.order == "big",
        bits=value(_BITS, 1),
        samples=value(_SAMPLES, 1),
        format=value(_FORMAT, 1),
        photometric=value(_PHOTOMETRIC, 0),
        planar=value(_PLANAR, 1) == 2,
        compression=value(_COMPRESSION, 1),
        extra=_EXTRA in first,
        orientation=value(_ORIENTATION, 1),
        tile=value(_TILE_WIDTH, 0) * value(_TILE_HEIGHT, 0),
        several=_is_page(data, following, form),
        wide=form.wide,
    )


def damage(data: bytes, tiff: Tiff) -> str:
    """What is damaged of the first picture's data, of what libtiff does not notice; empty if nothing is.

    It takes the file's first bytes for strips and tiles without a place, and compares no checksum of deflated ones.
    """
    form = _FORMS[data[:4]]
    found, _ = _directory(data, _first(data, form), form, tiff.height * tiff.samples)
    if _TILES in found:
        width, height = (max(1, found.get(tag, (1,))[0]) for tag in (_TILE_WIDTH, _TILE_HEIGHT))
        count = -(-tiff.width // width) * -(-tiff.height // height)
        places, sizes = found[_TILES], found.get(_TILE_SIZES, ())
    else:
        count = -(-tiff.height // max(1, found.get(_ROWS, (tiff.height,))[0]))
        places, sizes = found.get(_STRIPS, ()), found.get(_STRIP_SIZES, ())
    count *= tiff.samples if tiff.planar else 1
    places, sizes = places[:count], sizes[:count]
    if len(places) < count or len(sizes) < count or not all(places) or not all(sizes):
        return "damaged: the TIFF does not say where all of its pixels are"
    if tiff.compression not in _DEFLATE:
        return ""
    most = tiff.bits // 8 * tiff.samples * max(tiff.tile, tiff.width * tiff.height)
    for place, size in zip(places, sizes, strict=True):
        reader = zlib.decompressobj()
        try:
            reader.decompress(data[place : place + size], most)
            reader.decompress(reader.unconsumed_tail, 1)  # the checksum follows the last byte
        except zlib.error:
            return "damaged: a part of the TIFF cannot be inflated"
        if not reader.eof:
            return "truncated: a part of the TIFF ends before its checksum, or is larger than the image"
    return ""


def _first(data: bytes, form: _Form) -> int:
    """Offset of the first directory."""
    place = 8 if form.wide else 4  # after the size of an offset, in a BigTIFF
    return int.from_bytes(data[place : place + form.word], form.order)


def _directory(data: bytes, place: int, form: _Form, most: int = _MOST_VALUES) -> tuple[Directory, int]:
    """Values of the tags that are used here, `most` of each, and the offset of the next directory."""
    order, word = form.order, form.word
    start = place + form.count
    count = int.from_bytes(data[place:start], order)
    found: Directory = {}
    end = start + form.entry * count
    for entry in range(start, min(end, len(data) - form.entry + 1), form.entry):
        tag, kind = (int.from_bytes(data[entry + at : entry + at + 2], order) for at in (0, 2))
        size = _SIZES.get(kind)
        if tag not in _READ or size is None:
            continue
        length = int.from_bytes(data[entry + 4 : entry + 4 + word], order)
        first = entry + 4 + word
        if length * size > word:
            first = int.from_bytes(data[first : first + word], order)
        stop = min(first + size * min(length, most), len(data) - size + 1)
        values = tuple(int.from_bytes(data[at : at + size], order) for at in range(first, stop, size))
        if values:
            found[tag] = values
    return found, int.from_bytes(data[end : end + word], order)


def _is_page(data: bytes, place: int, form: _Form) -> bool:
    """Whether a directory, if there is one, is that of a page."""
    if not place:
        return False
    picture, _ = _directory(data, place, form)
    return bool(picture.get(_WIDTH)) and not picture.get(_SUBFILE, (0,))[0] & _NO_PAGE


def _raw(data: bytes, first: Directory, following: int, form: _Form) -> str:
    """Kind of camera raw: DNG, or with a sensor's values in any directory, or with a preview as the first picture."""
    if _DNG in first:
        return "DNG"
    pictures, pending = [first], list(first.get(_SUB_DIRECTORIES, ()))
    while (following or pending) and len(pictures) < _MOST_DIRECTORIES:
        place = following or pending.pop(0)
        picture, after = _directory(data, place, form)
        following = after if following else 0
        pictures.append(picture)
    sensor = any(picture.get(_PHOTOMETRIC, (0,))[0] in (_COLOUR_FILTER, _LINEAR_RAW) for picture in pictures)
    preview = _SUB_DIRECTORIES in first and first.get(_SUBFILE, (0,))[0] & 1
    marked = not form.wide and (data[8:10] == b"CR" or data[8:12] == b"IIII")  # a BigTIFF has an offset there
    if not (sensor or preview or marked):
        return ""
    make = bytes(first.get(_MAKE, ())).split(b"\0")[0].strip()
    known = [kind for name, kind in _MAKES.items() if make.upper().startswith(name)]
    return known[0] if known else make.decode("ascii", "replace") or "TIFF"
