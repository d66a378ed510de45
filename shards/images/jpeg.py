"""A JPEG's header, read without decoding: size, coding process, orientation, and where its data begin and end.

Markers and segments are those of ITU-T T.81, annex B. Of the application segments only EXIF's APP1 is parsed.
"""

from __future__ import annotations

from dataclasses import dataclass

from shards.images.convert import orientation

START = b"\xff\xd8"
END = b"\xff\xd9"
BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2  # Huffman-coded frames: what every decoder reads
MAX_SCANS = 100  # encoders write about ten; each costs a pass over the image, however few its bytes
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF markers
_FILL = frozenset((0x00, 0xFF))
_NO_LENGTH = frozenset((0x01, *range(0xD0, 0xD9)))
_SCAN, _EXIF = 0xDA, 0xE1


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
    """

    frame: int
    precision: int
    height: int
    width: int
    components: int
    orientation: int
    data: int

    @property
    def plain(self) -> bool:
        """Whether every decoder reads it as 8-bit grey or colour."""
        known = self.frame in (BASELINE, EXTENDED, PROGRESSIVE)
        return known and self.precision == 8 and self.components in (1, 3)


def read_header(data: bytes) -> Header | None:
    """Header of a JPEG; None if it is not one, or its segments do not lead to a frame and a scan."""
    if data[:2] != START:
        return None
    place, last, frame, turn = 2, len(data) - 4, None, 1
    while 0 <= place < last:
        marker = data[place + 1]
        # Decoders skip bytes between segments that are not a marker, so a file that has some is not damaged.
        if data[place] != 0xFF or marker in _FILL:
            place = data.find(b"\xff", place + 1)
            continue
        if marker in _NO_LENGTH:
            place += 2
            continue
        begin, end = place + 4, place + 2 + (data[place + 2] << 8 | data[place + 3])
        if marker in _FRAMES:
            frame = marker, data[begin : begin + 6]
        elif marker == _SCAN:
            return _header(frame, turn, end)
        elif marker == _EXIF and turn == 1 and data[begin : begin + 6] == b"Exif\0\0":
            turn = orientation(data[begin:end])
        place = end
    return None


def _header(frame: tuple[int, bytes] | None, turn: int, data: int) -> Header | None:
    if frame is None or len(frame[1]) < 6:
        return None
    marker, values = frame
    height, width = int.from_bytes(values[1:3], "big"), int.from_bytes(values[3:5], "big")
    return Header(marker, values[0], height, width, values[5], turn, data)


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
    """Number of scans, each of which is a decoder's pass over a progressive image."""
    return 1 if header.frame != PROGRESSIVE else 1 + data.count(b"\xff\xda", header.data)


def holds_all_blocks(data: bytes, header: Header) -> bool:
    """Whether the data are long enough for the size that the header claims.

    Every 8 x 8 block of the finest component needs at least one bit of Huffman code, also in a progressive JPEG (its
    first value is never skipped), so a byte covers at most 512 pixels.
    """
    blocks = -(-header.width // 8) * -(-header.height // 8)
    return not header.plain or 8 * (len(data) - header.data) >= blocks
