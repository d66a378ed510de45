"""What DALI may be given: JPEGs whose headers its parser accepts; other images as pixels.

In DALI 2.4 a header that its parser (nvImageCodec's) rejects leaves worker threads running on a stack frame that no
longer exists, which ends the process with a segmentation fault.
"""

from __future__ import annotations

import numpy as np

_SCAN, _EXIF = 0xDA, 0xE1
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_NO_SEGMENT = frozenset((0x00, 0x01, *range(0xD0, 0xDA)))  # between segments DALI takes the next two bytes for a length


def parsed_size(data: bytes) -> tuple[int, int] | None:
    """Height and width by a JPEG's header; None if DALI's parser might reject it.

    Stricter than libjpeg, which passes over stray bytes and segments that are too short. The cost, of some ten
    segments a header, is 5 µs.
    """
    if data[:2] != b"\xff\xd8":
        return None
    size, place = None, 2
    try:
        while data[place] == 0xFF:
            marker = data[place + 1]
            if marker == 0xFF:  # a fill byte
                place += 1
                continue
            if marker == _SCAN:
                return size
            length = data[place + 2] << 8 | data[place + 3]
            if marker in _NO_SEGMENT or length < 2:
                return None
            if marker in _FRAMES:
                components = data[place + 9]
                found = data[place + 5] << 8 | data[place + 6], data[place + 7] << 8 | data[place + 8]
                if size not in (None, found) or components not in (1, 3, 4) or length < 8 + 3 * components:
                    return None
                size = found
            elif marker == _EXIF and length < 8:
                return None
            place += 2 + length
    except IndexError:
        pass
    return None


def as_pixels(image: np.ndarray) -> bytes:
    """An image file without a JPEG's header and coding (PPM) of uint8[H, W, 3]; DALI decodes it to the same pixels."""
    height, width = image.shape[:2]
    return f"P6\n{width} {height}\n255\n".encode() + image.tobytes()
