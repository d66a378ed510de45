"""Which images are near copies of an earlier one.

Hashes are searched by multi-index hashing (Norouzi, Punjani, Fleet: Fast search in Hamming space with multi-index
hashing, CVPR 2012): the 64 bits of the lowest frequencies are four keys of 16 bits. Hashes that differ in at most 7 of
these bits differ in at most one bit of some key, so that 17 look-ups for each key find all of them.
"""

from __future__ import annotations

import numba
import numpy as np

from shards.packing.duplicates.fingerprint import lowest

COLOURS = 6
"""Mean difference of the colours of 4 x 4 parts, in levels of 255, up to which images may be copies of each other."""
_KEYS, _BITS = 4, 16
_MOST = 7  # differing bits of the lowest frequencies


def near_copies(
    hashes: np.ndarray, colours: np.ndarray, distance: int, kept: int = 0, within: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """For each image the earlier one that it is a near copy of.

    An image that is near one that stays is left out; those that stay are taken from the first on. So nothing is left
    out for being near an image that is left out itself, and the result does not depend on how the work was divided.

    Args:
        hashes: uint64[N, 6, 4] by falling preference: perceptual hashes of the whole image and of five windows.
        colours: uint8[N, 48]: mean colours of parts.
        distance: Differing bits of 256 up to which images are near: of the whole of one and a window of the other.
        kept: Number of images at the start that stay in any case.
        within: Whether the images after these are compared with each other too.

    Returns:
        int64[N], the image that stays, or -1; and the distance from it, int64[N].
    """
    low = lowest(hashes)
    shifts = np.arange(_KEYS, dtype=np.uint64) * np.uint64(_BITS)
    keys = ((low[:, 0, None] >> shifts) & np.uint64((1 << _BITS) - 1)).astype(np.int64)
    entries = np.stack([np.argsort(keys[:, key], kind="stable").astype(np.int32) for key in range(_KEYS)])
    counts = np.stack([np.bincount(keys[:, key], minlength=1 << _BITS) for key in range(_KEYS)])
    starts = np.concatenate([np.zeros((_KEYS, 1), np.int64), counts.cumsum(1)], 1)
    inline = low[entries, 0]  # a copy in the order in which it is read
    found = np.full(len(hashes), -1, np.int64), np.zeros(len(hashes), np.int64)
    _search(np.ascontiguousarray(hashes), low, colours, starts, entries, inline, distance, kept, within, *found)
    return found


@numba.njit(nogil=True)
def _bits(value):  # numba has no popcount
    value = value - ((value >> np.uint64(1)) & np.uint64(0x5555555555555555))
    value = (value & np.uint64(0x3333333333333333)) + ((value >> np.uint64(2)) & np.uint64(0x3333333333333333))
    value = (value + (value >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((value * np.uint64(0x0101010101010101)) >> np.uint64(56))


@numba.njit(nogil=True)
def _distance(one, other):
    """Smallest distance of the whole of one and a window of the other: hashes uint64[6, 4]."""
    least = 256
    for window in range(one.shape[0]):
        there = back = 0
        for word in range(one.shape[1]):
            there += _bits(one[window, word] ^ other[0, word])
            back += _bits(one[0, word] ^ other[window, word])
        least = min(least, there, back)
    return least


@numba.njit(nogil=True)
def _alike(one, other):
    """Whether the mean colours of the parts are about the same."""
    difference = 0
    for part in range(len(one)):
        difference += abs(np.int64(one[part]) - np.int64(other[part]))
    return difference <= COLOURS * len(one)


@numba.njit(nogil=True)
def _candidates(image, low, starts, entries, inline):
    """Images whose whole has about the lowest frequencies of a window of `image`; some of them several times."""
    for window in range(low.shape[1]):
        for key in range(_KEYS):
            value = np.int64((low[image, window] >> np.uint64(_BITS * key)) & np.uint64((1 << _BITS) - 1))
            for bit in range(_BITS + 1):
                near = value if bit == _BITS else value ^ (1 << bit)
                for place in range(starts[key, near], starts[key, near + 1]):
                    if _bits(low[image, window] ^ inline[key, place]) <= _MOST:
                        yield entries[key, place]


@numba.njit(nogil=True)
def _search(hashes, low, colours, starts, entries, inline, distance, kept, within, copy_of, distances):
    for image in range(len(hashes)):
        # the first before it that it is near to: those that have a window near to it have said so already
        first = image if copy_of[image] < 0 else copy_of[image]
        if image >= kept:
            for other in _candidates(image, low, starts, entries, inline):
                if other < first and copy_of[other] < 0 and (within or other < kept):
                    far = _distance(hashes[image], hashes[other])
                    if far <= distance and _alike(colours[image], colours[other]):
                        first = other
                        copy_of[image], distances[image] = first, far
        if copy_of[image] < 0 and (within or image < kept):  # it stays
            for other in _candidates(image, low, starts, entries, inline):
                if other > image and other >= kept and copy_of[other] < 0:
                    far = _distance(hashes[image], hashes[other])
                    if far <= distance and _alike(colours[image], colours[other]):
                        copy_of[other], distances[other] = image, far
