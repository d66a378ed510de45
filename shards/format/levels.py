"""How many pixels of a shard have each of the 65,536 values (`.levels`), and the percentiles of many shards."""

from __future__ import annotations

import bz2
import hashlib
from fractions import Fraction

import numpy as np

from shards.format.manifest import ShardRecord
from shards.format.scaling import Scaling
from shards.images.options import VALUES_16
from shards.storage.base import Store

ROWS = 4
"""Counts of grey images, then of the red, green and blue of RGB images."""
_BYTES = ROWS * VALUES_16 * 8
MOST_BYTES = _BYTES + (1 << 16)
"""Of a file: counts that cannot be compressed."""


def no_levels() -> np.ndarray:
    """int64[4, 65536] of no image."""
    return np.zeros((ROWS, VALUES_16), np.int64)


def add_image(levels: np.ndarray, counts: np.ndarray) -> None:
    """Add the counts of an image, int64[1 or 3, 65536], to int64[4, 65536]."""
    levels[slice(0, 1) if len(counts) == 1 else slice(1, ROWS)] += counts


def levels_bytes(levels: np.ndarray) -> bytes:
    """Content of a `.levels` file: int64[4, 65536] in C order, little-endian, compressed by bzip2."""
    return bz2.compress(levels.astype("<i8").tobytes())


def levels_of_bytes(data: bytes, name: str) -> np.ndarray:
    """int64[4, 65536] of a `.levels` file; ValueError if it is damaged."""
    reader = bz2.BZ2Decompressor()
    try:
        found = reader.decompress(data, _BYTES + 1)  # no more, whatever the file holds
    except OSError:
        found = b""
    if len(found) != _BYTES or not reader.eof or reader.unused_data:
        raise ValueError(f"{name} is damaged: it does not hold {ROWS} x {VALUES_16:,} counts")
    levels = np.frombuffer(found, "<i8").reshape(ROWS, VALUES_16).astype(np.int64)
    if levels.min() < 0:
        raise ValueError(f"{name} is damaged: it holds negative counts")
    return levels


def read_levels(store: Store, record: ShardRecord) -> np.ndarray:
    """int64[4, 65536] of a shard.

    Raises:
        ValueError: The file is damaged; the message begins with its name.
        OSError: It cannot be read.
    """
    name = f"{record.name}.levels"
    data = store.read(name, MOST_BYTES)
    levels = levels_of_bytes(data, name)
    if hashlib.sha256(data).hexdigest() != record.levels_sha256:
        raise ValueError(f"{name} is damaged: it is not the file that was packed (SHA-256)")
    return levels


def scaling_of(levels: np.ndarray, percentiles: tuple[float, float], channels: int) -> Scaling:
    """The percentiles of a set.

    Args:
        levels: int64[4, 65536] over all shards, with at least one pixel.
        percentiles: The lower and the higher one, 0 to 100.
        channels: Of the set; with 3, grey images count in each of them, as which they are read.
    """
    rows = levels[:1] if channels == 1 else levels[1:] + levels[0]
    low, high = ([_percentile(row, share) for row in rows] for share in percentiles)
    high = [max(above, below + 1) for below, above in zip(low, high, strict=True)]
    return Scaling(percentiles, tuple(low), tuple(high))


def _percentile(counts: np.ndarray, percent: float) -> int:
    """The least value with at least `percent` of the pixels at or below it, exactly; of 0 the least that occurs."""
    sums = counts.cumsum()
    share = Fraction(repr(float(percent))) / 100  # as it was written, not its nearest binary fraction
    needed = -(-int(sums[-1]) * share.numerator // share.denominator)
    return int(np.searchsorted(sums, max(1, needed)))
