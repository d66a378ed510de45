"""The size of a JPEG XL, read without decoding (ISO/IEC 18181-1 and -2)."""

from __future__ import annotations

from collections.abc import Iterator

_STREAM, _CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
# width to height, by a number of three bits; 0: the width is stored
_RATIOS = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def is_one(data: bytes) -> bool:
    """Whether a file begins as a JPEG XL."""
    return data.startswith((_STREAM, _CONTAINER))


def size(data: bytes) -> tuple[int, int] | None:
    """Width and height before rotation; None if there is no header."""
    stream = data if data.startswith(_STREAM) else next(_streams(data), b"")
    if not stream.startswith(_STREAM) or len(stream) < 16:
        return None
    bits, place = int.from_bytes(stream[2:16], "little"), 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return bits >> (place - count) & ((1 << count) - 1)

    def side(small: int) -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    small = take(1)
    height = side(small)
    across, down = _RATIOS[take(3)]
    return (height * across // down if across else side(small)), height


def _streams(data: bytes) -> Iterator[bytes]:
    """The beginnings of the codestream's parts in a container."""
    place = 0
    while place + 8 <= len(data):
        length, kind, header = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8], 8
        if length == 1:
            length, header = int.from_bytes(data[place + 8 : place + 16], "big"), 16
        if kind == b"jxlc":
            yield data[place + header : place + header + 64]
        elif kind == b"jxlp":  # its number comes first
            yield data[place + header + 4 : place + header + 68]
        if length < header:  # 0: up to the end of the file
            return
        place += length
