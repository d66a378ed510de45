"""Colour profiles, written by hand (ICC.1:2001-04, version 2), and what they mean."""

from __future__ import annotations

import itertools
import struct

import numpy as np

# red, green and blue as XYZ adapted to D50
SRGB = np.array([(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)])
DISPLAY_P3 = np.array([(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)])
_WHITE = (0.9642, 1.0, 0.8249)  # D50


def _profile(kind: bytes, space: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"desc": _text(b"desc"), b"wtpt": _xyz(_WHITE), b"cprt": b"text" + bytes(4) + b"none\0", **tags}
    place = 128 + 4 + 12 * len(tags)
    table, contents = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name, place + len(contents), len(content))
        contents += content + bytes(-len(content) % 4)
    header = struct.pack(">I4sI4s4s4s", place + len(contents), b"none", 0x02400000, kind, space, _space(space))
    header += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp")
    return header.ljust(68, b"\0") + _xyz(_WHITE)[8:] + bytes(48) + table + contents


def _space(space: bytes) -> bytes:
    return b"Lab " if space == b"CMYK" else b"XYZ "


def _text(name: bytes) -> bytes:
    return b"desc" + struct.pack(">II", 0, len(name) + 1) + name + b"\0" + bytes(4 + 4 + 2 + 1 + 67)


def _xyz(values) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


def _gamma(value: float) -> bytes:
    return b"curv" + struct.pack(">IIH", 0, 1, round(value * 256))


def rgb_profile(primaries: np.ndarray, gamma: float) -> bytes:
    """Of a display with these primaries."""
    colours = zip((b"r", b"g", b"b"), primaries, strict=True)
    tags = {
        name + end: content for name, xyz in colours for end, content in ((b"XYZ", _xyz(xyz)), (b"TRC", _gamma(gamma)))
    }
    return _profile(b"mntr", b"RGB ", tags)


def grey_profile(gamma: float) -> bytes:
    """Of a grey scale."""
    return _profile(b"mntr", b"GRAY", {b"kTRC": _gamma(gamma)})


def cmyk_profile(lab_of) -> bytes:
    """Of a printer: `lab_of` gives L*, a*, b* for the sixteen combinations of no and full ink."""
    straight = bytes(range(256))
    corners = b"".join(
        bytes((round(lightness * 2.55), round(a) + 128, round(b) + 128))
        for lightness, a, b in (lab_of(*inks) for inks in itertools.product((0, 1), repeat=4))
    )
    matrix = struct.pack(">9i", *(65536 * (row == column) for row in range(3) for column in range(3)))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + matrix + straight * 4 + corners + straight * 3
    return _profile(b"prtr", b"CMYK", {b"A2B0": table})


def srgb_of_xyz(xyz: np.ndarray) -> np.ndarray:
    """8-bit sRGB of XYZ adapted to D50 (IEC 61966-2-1)."""
    linear = np.clip(np.linalg.inv(SRGB.T) @ xyz, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def xyz_of_lab(lightness: float, a: float, b: float) -> np.ndarray:
    """XYZ of L*, a*, b* for D50 (CIE 15)."""
    y = (lightness + 16) / 116
    f = np.array([y + a / 500, y, y - b / 200])
    return np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2) * _WHITE
