"""A JPEG's header, read without decoding: size, coding process, orientation, and where its data begin and end.

Markers and segments are those of ITU-T T.81, annex B. Of the application segments only EXIF's APP1 is parsed.

libjpeg reads headers that other decoders reject. DALI's parser (nvImageCodec 0.9) takes every marker before the first
scan for one with a length, so it rejects bytes between segments, a length below 2, a stuffed FF 00, and markers without
a length (RST, TEM, a second SOI). It accepts fill bytes, a missing or second JFIF segment, and anything after the first
scan's header. If there are several EXIF segments, it takes the last orientation, whatever the tag's type; Pillow takes
the first segment's. `Header.standard` is therefore false for all of these, and `rewritten` leaves them out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from shards.images.convert import orientations

START = b"\xff\xd8"
END = b"\xff\xd9"
BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2  # Huffman-coded frames: what every decoder reads
_PROGRESSIVE = (PROGRESSIVE, 0xCA)  # the second is arithmetic-coded
JPEG_LS = 0xF7
MAX_SCANS = 100  # of a progressive JPEG; encoders write about ten
MAX_BLOCKS_OF_SCANS = 1 << 24  # blocks times scans of a sequential JPEG; libjpeg takes 30 to 60 ns for each
_FRAMES = (frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {JPEG_LS}  # SOF markers
_LOSSLESS, _HIERARCHICAL = (0xC3, 0xC7, 0xCB, 0xCF), (0xC5, 0xC6, 0xCD, 0xCE)
_FILL = frozenset((0x00, 0xFF))
_NO_LENGTH = frozenset((0x01, *range(0xD0, 0xD9)))
_SCAN, _EXIF, _ICC, _ADOBE, _JFIF = 0xDA, 0xE1, 0xE2, 0xEE, 0xE0
_ICC_NAME = b"ICC_PROFILE\0"
_TABLES = frozenset((0xC4, 0xCC, 0xDB, 0xDD))  # Huffman and arithmetic coding, quantisation, restart interval
_KNOWN = _FRAMES | _TABLES | frozenset(range(0xE0, 0xF0)) | {_SCAN, 0xFE}
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in entropy-coded data
_MOST_MARKERS = 100_000  # that `scans` looks at: a tenth of a second


@dataclass(frozen=True)
class Header:
    """The data before a JPEG's first scan.

    Attributes:
        frame: Second byte of the SOF marker, which identifies the coding process.
        precision: Bits per value.
        height: Pixels.
        width: Pixels.
        components: 1 for grey, 3 for colour, 4 for CMYK and YCCK.
        orientation: EXIF orientation; 1 is upright.
        data: Offset of the first scan's entropy-coded data.
        single_scan: The first scan holds the whole image.
        standard: Every decoder finds the same segments, and none would turn an upright image.
    """

    frame: int
    precision: int
    height: int
    width: int
    components: int
    orientation: int
    data: int
    single_scan: bool
    standard: bool

    @property
    def plain(self) -> bool:
        """Whether every decoder reads it as 8-bit grey or colour."""
        known = self.frame in (BASELINE, EXTENDED, PROGRESSIVE)
        return known and self.precision == 8 and self.components in (1, 3)

    @property
    def progressive(self) -> bool:
        """Whether each scan refines the image."""
        return self.frame in _PROGRESSIVE

    @property
    def blocks(self) -> int:
        """Blocks of 8 x 8 pixels."""
        return -(-self.width // 8) * -(-self.height // 8)

    @property
    def usual_scans(self) -> int:
        """The most scans that an encoder writes; a sequential JPEG has each component once."""
        return MAX_SCANS if self.progressive else self.components

    @property
    def unsupported(self) -> str:
        """The kind of JPEG, if Pillow's libjpeg does not read it; else empty."""
        if self.frame == JPEG_LS:
            return "JPEG-LS"
        if self.frame in _LOSSLESS:
            return "lossless JPEG"
        if self.frame in _HIERARCHICAL:
            return "hierarchical JPEG"
        if self.precision == 12:
            return "12-bit JPEG"
        if self.components == 2:
            return "JPEG of 2 components"
        return "" if self.height or not self.width else "JPEG with its height after its data (DNL)"


def read_header(data: bytes) -> Header | None:
    """Header of a JPEG; None if it is not one, or its segments do not lead to one frame and a scan.

    If several EXIF segments have an orientation, the first counts, as in browsers.
    """
    frame, exifs = None, []
    for marker, begin, end, standard in _segments(data):
        if marker == _SCAN:
            return _header(frame, exifs, data[begin:end], end, standard)
        if marker in _FRAMES:
            if frame is not None:
                return None  # libjpeg rejects it, too
            frame = marker, data[begin : min(begin + 6, end)]
        elif marker == _EXIF and data[begin : begin + 6] == b"Exif\0\0":
            exifs.append(data[begin:end])
    return None


def colour_profile(data: bytes) -> bytes | None:
    """The ICC profile of a JPEG, from all of its parts (ICC.1:2022, annex B.4); None if it has none or lacks one."""
    parts: dict[int, bytes] = {}
    count = 0
    for marker, begin, end, _ in _segments(data):
        if marker == _ICC and data[begin : begin + len(_ICC_NAME)] == _ICC_NAME and end - begin > 14:
            count = data[begin + 13]
            parts[data[begin + 12]] = data[begin + 14 : end]
    if not count or sorted(parts) != list(range(1, count + 1)):
        return None
    return b"".join(parts[number] for number in sorted(parts))


def _segments(data: bytes) -> Iterator[tuple[int, int, int, bool]]:
    """The segments up to the first scan's header, as libjpeg finds them.

    Yields:
        Marker, begin, end, and whether all segments so far follow the standard.
    """
    place, last = 2 if data[:2] == START else len(data), len(data) - 4
    standard, marker = True, 0
    while 0 <= place < last and marker != _SCAN:
        marker = data[place + 1]
        # Decoders skip bytes between segments that are not a marker, so a file that has some is not damaged.
        if data[place] != 0xFF or marker in _FILL:
            standard = False
            place = data.find(b"\xff", place + 1)
        elif marker in _NO_LENGTH:
            standard = False
            place += 2
        else:
            begin, length = place + 4, data[place + 2] << 8 | data[place + 3]
            standard = standard and length >= 2 and marker in _KNOWN
            place += 2 + max(length, 2)  # as libjpeg reads a length of 0 or 1
            yield marker, begin, place, standard


def _header(
    frame: tuple[int, bytes] | None, exifs: list[bytes], scan: bytes, data: int, standard: bool
) -> Header | None:
    if frame is None or len(frame[1]) < 6:
        return None
    marker, values = frame
    height, width = int.from_bytes(values[1:3], "big"), int.from_bytes(values[3:5], "big")
    turns = [turn for exif in exifs for turn in orientations(exif)]
    inert = len(exifs) < 2 and all(turn == (1, 1) for turn in turns)
    single = marker not in _PROGRESSIVE and scan[:1] == values[5:6]
    return Header(
        marker, values[0], height, width, values[5], turns[0][0] if turns else 1, data, single, standard and inert
    )


def rewritten(data: bytes) -> bytes:
    """The JPEG with only the segments that its pixels depend on: the same pixels, for every decoder."""
    kept, dropped = [START], False
    for marker, begin, end, standard in _segments(data):
        if marker == _SCAN:
            if standard and not dropped:
                return data  # without a copy
            kept.append(data[begin - 4 :])
        elif end == begin:  # perhaps with a length below 2
            dropped = True
        elif marker in _FRAMES or marker in _TABLES or _names_colours(marker, data[begin:end]):
            kept.append(data[begin - 4 : end])
        else:
            dropped = True
    return b"".join(kept)


def _names_colours(marker: int, content: bytes) -> bool:
    """Whether libjpeg tells YCbCr from RGB by this segment."""
    if marker == _JFIF:
        return content.startswith(b"JFIF\0") and len(content) >= 14
    return marker == _ADOBE and content.startswith(b"Adobe") and len(content) >= 12


def end_of_image(data: bytes, header: Header) -> int:
    """Offset after the image's end marker; 0 if there is none.

    A file that ends with an end marker is used whole: a second picture (MPO) may follow the first. Otherwise the first
    marker after the header counts: entropy-coded data cannot hold one, but appended data may.
    """
    if data.endswith(END) and len(data) - 2 >= header.data:
        return len(data)
    place = data.find(END, header.data)
    return place + 2 if place >= 0 else 0


def scans(data: bytes, header: Header) -> int:
    """Number of scans; a decoder makes a pass over the image for each, however few its bytes."""
    if header.single_scan:  # decoders then read no other
        return 1
    count, place = 1, header.data
    for _ in range(_MOST_MARKERS):
        found = _NEXT_MARKER.search(data, place)
        if found is None or found[0] == END:
            break
        marker, place = found[0][1], found.end()
        count += marker == _SCAN
        if marker not in _NO_LENGTH:
            place += max(2, int.from_bytes(data[place : place + 2], "big"))
    return count


def holds_all_blocks(data: bytes, header: Header) -> bool:
    """Whether the data are long enough for the size that the header claims.

    Every 8 x 8 block of the finest component needs at least one bit of Huffman code, also in a progressive JPEG (its
    first value is never skipped), so a byte covers at most 512 pixels.
    """
    return not header.plain or 8 * (len(data) - header.data) >= header.blocks
