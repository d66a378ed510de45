"""A camera's raw file, written by hand: a DNG is a TIFF with the values of a sensor (DNG specification 1.4)."""

from __future__ import annotations

import struct

import numpy as np

# XYZ (D65) to linear sRGB (IEC 61966-2-1): of a camera whose primaries are sRGB's
_TO_SRGB = (3.2406, -1.5372, -0.4986, -0.9689, 1.8758, 0.0415, 0.0557, -0.2040, 1.0570)


def dng(linear_HW3: np.ndarray, orientation: int = 1) -> bytes:
    """A DNG whose sensor sees linear sRGB, 0 to 1, behind a filter of red, green, green and blue."""
    height, width, _ = linear_HW3.shape
    y, x = np.mgrid[:height, :width]
    filters = np.array([[0, 1], [1, 2]])[y % 2, x % 2]
    sensor = np.rint(np.take_along_axis(linear_HW3, filters[..., None], 2)[..., 0] * 65535).astype("<u2").tobytes()
    entries = [
        (254, "I", [0]), (256, "I", [width]), (257, "I", [height]), (258, "H", [16]), (259, "H", [1]),
        (262, "H", [32803]), (271, "s", b"Test\0"), (272, "s", b"Test One\0"), (273, "I", [0]),
        (274, "H", [orientation]), (277, "H", [1]), (278, "I", [height]), (279, "I", [len(sensor)]),
        (284, "H", [1]), (33421, "H", [2, 2]), (33422, "B", [0, 1, 1, 2]), (50706, "B", [1, 4, 0, 0]),
        (50708, "s", b"Test One\0"), (50714, "I", [0]), (50717, "I", [65535]),
        (50721, "ii", [round(value * 10000) for value in _TO_SRGB]), (50728, "II", [1, 1, 1]), (50778, "H", [21]),
    ]  # fmt: skip
    kinds = {"B": 1, "s": 2, "H": 3, "I": 4, "II": 5, "ii": 10}
    begin = 8 + 2 + 12 * len(entries) + 4
    table, beyond = struct.pack("<H", len(entries)), b""
    places = {}
    for tag, kind, values in entries:
        if kind == "s":
            content, count = bytes(values), len(values)
        elif len(kind) == 2:  # rationals
            scale = 10000 if kind == "ii" else 1
            content, count = b"".join(struct.pack(f"<{kind}", value, scale) for value in values), len(values)
        else:
            content, count = struct.pack(f"<{len(values)}{kind}", *values), len(values)
        places[tag] = 8 + len(table) + 8
        if len(content) > 4:
            table += struct.pack("<HHII", tag, kinds[kind], count, begin + len(beyond))
            beyond += content + bytes(len(content) % 2)
        else:
            table += struct.pack("<HHI", tag, kinds[kind], count) + content.ljust(4, b"\0")
    data = bytearray(b"II*\0" + struct.pack("<I", 8) + table + bytes(4) + beyond + sensor)
    struct.pack_into("<I", data, places[273], begin + len(beyond))
    return bytes(data)
