"""Fingerprints of images: a SHA-256 of the content, and perceptual hashes that near copies share for the most part.

A perceptual hash has 256 bits: which of the 16 x 16 lowest frequencies of the grey image are above their median
(the `phash` of pHash and ImageHash: Zauner, Implementation and benchmarking of perceptual image hash functions, 2010).
A copy that was resized or recompressed differs in a few of them, a copy whose border was cut off
in a quarter. Therefore five windows are hashed as well, each with 95 % of the sides: one of them is close to the cut
copy, and their hashes differ in a few bits again.
"""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from shards.images.encode import content, reduced
from shards.images.options import EncodeOptions

UNREADABLE, EXACT_ONLY, HASHED = range(3)
"""States of an image: left out in any case; compared by content alone; compared by hashes too."""
_EXACT = [("state", "u1"), ("sha256", "<u8", 4)]
_SIZES = [("height", "<u4"), ("width", "<u4"), ("bytes", "<i8")]
EXACT = np.dtype(_EXACT)
"""Fingerprint of an image whose content alone is compared."""
NEAR = np.dtype([*_EXACT, *_SIZES, ("hashes", "<u8", (6, 4)), ("colours", "u1", 48)])
"""Fingerprint of an image: `hashes` of the whole and of five windows; `colours` are the means of 4 x 4 parts."""
_SIDE = 135  # pixels of the square that is hashed: windows of 128 are 95 % of it
_WINDOW = 128
_LEAST = _SIDE  # pixels of a side that are decoded: with fewer, copies of another size are decoded differently
_SQUARE = 64  # pixels of a side whose frequencies are taken
_LOWEST = 16  # frequencies of either direction
# Of a discrete cosine transform, in whole numbers: their sums are exact in float64, and the bits the same everywhere.
_COSINES = np.rint(2**15 * np.cos(np.pi * np.outer(np.arange(_LOWEST), 2 * np.arange(_SQUARE) + 1) / (2 * _SQUARE)))
_CORNERS = ((3, 3), (0, 0), (7, 0), (0, 7), (7, 7))
_CONTRAST = 4.0  # levels of 255: below, noise decides most bits of the hash


def fingerprint(data: bytes, options: EncodeOptions, near: bool) -> np.ndarray:
    """EXACT, or NEAR if `near`, of an image file (0-dimensional).

    Raises:
        Rejected: The image is left out in any case.
    """
    found = np.zeros((), NEAR if near else EXACT)
    found["state"] = EXACT_ONLY
    found["sha256"] = np.frombuffer(hashlib.sha256(content(data, options)).digest(), "<u8")
    if near:
        found["bytes"] = len(data)
        image, found["height"], found["width"] = reduced(data, options, _LEAST)
        grey = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        if np.asarray(grey).std() >= _CONTRAST:
            found["state"] = HASHED
            whole = grey.resize((_SQUARE, _SQUARE), Image.Resampling.BOX)
            windows = [grey.crop((x, y, x + _WINDOW, y + _WINDOW)).reduce(_WINDOW // _SQUARE) for x, y in _CORNERS]
            found["hashes"] = perceptual(np.stack([np.asarray(image) for image in (whole, *windows)]))
            parts = image.convert("RGB").resize((4, 4), Image.Resampling.BOX)
            found["colours"] = np.asarray(parts).reshape(-1)
    return found


def perceptual(squares: np.ndarray) -> np.ndarray:
    """Hashes of grey images, uint8[N, 64, 64], as uint64[N, 4]: 16 rows of 16 bits, the lowest frequencies first."""
    frequencies = (_COSINES @ squares.astype(np.float64) @ _COSINES.T).reshape(len(squares), -1)
    bits = frequencies > np.median(frequencies, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view("<u8")


def lowest(hashes: np.ndarray) -> np.ndarray:
    """The bits of the 8 x 8 lowest frequencies: uint64[...] of hashes uint64[..., 4]."""
    # rows of two bytes, of which the first holds the lower frequencies; the first eight rows
    rows = np.ascontiguousarray(hashes).view(np.uint8)[..., :16:2]
    return np.ascontiguousarray(rows).view("<u8")[..., 0]
