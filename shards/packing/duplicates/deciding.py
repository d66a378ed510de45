"""Which images are left out because another one is the same or nearly the same, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from shards.packing.duplicates.fingerprint import HASHED, UNREADABLE
from shards.packing.duplicates.matching import near_copies
from shards.packing.plan import Entry

Entries = Callable[[np.ndarray], Mapping[int, Entry]]
"""The entries of images by their numbers, int64[N]."""
_NONE = -1


@dataclass(frozen=True)
class Copies:
    """Images that are left out.

    Attributes:
        image: int64[M]: their numbers; those of other sets come first, then those of the source in the plan's order.
        of: int64[M]: the images that they are copies of, which stay.
        distance: int64[M]: between their perceptual hashes; -1 if the content is the same.
    """

    image: np.ndarray
    of: np.ndarray
    distance: np.ndarray


def copies(found: np.ndarray, kept: int, within: bool, distance: int | None, entries: Entries) -> Copies:
    """Images that are copies of another one.

    Of images with the same content the one with the shortest name stays, of these the first by name. Of near copies
    the one with the most pixels stays; of equally large ones that with the largest file, then the first in the plan's
    order. Images of other sets always stay.

    Args:
        found: EXACT[N] or, with a distance, NEAR[N]: of the images of other sets, then of the source.
        kept: Number of those of other sets.
        within: Whether images of the source are compared with each other.
        distance: Of near copies; None: only the content is compared.
        entries: Where the names come from.
    """
    of = np.full(len(found), _NONE, np.int64)
    far = np.full(len(found), _NONE, np.int64)
    groups = list(_same_content(found))
    named = entries(np.concatenate(groups)) if groups and within else {}
    for group in groups:
        if group[0] < kept:
            stays = group[0]
        elif within:
            stays = min(group.tolist(), key=lambda number: _name_order(named[number]))
        else:
            continue
        of[group[(group >= kept) & (group != stays)]] = stays
    if distance is not None:
        _add_near(found, kept, within, distance, of, far)
    image = np.flatnonzero(of != _NONE)
    return Copies(image, of[image], far[image])


def _name_order(entry: Entry) -> tuple[int, bytes, bytes]:
    length = len(entry.path) + len(entry.member) if entry.is_member else len(entry.member or entry.path)
    return length, entry.path, entry.member


def _same_content(found: np.ndarray) -> Iterator[np.ndarray]:
    """Numbers of images with the same content, ascending, for each content that several have."""
    readable = np.flatnonzero(found["state"] != UNREADABLE)
    digests = found["sha256"][readable]
    order = np.lexsort((readable, *digests.T))
    equal = np.concatenate([[False], (digests[order[1:]] == digests[order[:-1]]).all(1), [False]])
    starts = np.flatnonzero(~equal[:-1] & equal[1:])
    ends = np.flatnonzero(equal[:-1] & ~equal[1:]) + 1
    for start, end in zip(starts, ends, strict=True):
        yield readable[order[start:end]]


def _add_near(found: np.ndarray, kept: int, within: bool, distance: int, of: np.ndarray, far: np.ndarray) -> None:
    """Add the near copies among those that have stayed so far."""
    candidates = np.flatnonzero((found["state"] == HASHED) & (of == _NONE))
    pixels = found["height"][candidates].astype(np.int64) * found["width"][candidates]
    # lexsort sorts by its last key first: the images of other sets come before all others
    order = candidates[np.lexsort((candidates, -found["bytes"][candidates], -pixels, candidates >= kept))]
    stay = int((candidates < kept).sum())
    copy_of, apart = near_copies(found["hashes"][order], found["colours"][order], distance, stay, within)
    near = np.flatnonzero(copy_of >= 0)
    of[order[near]], far[order[near]] = order[copy_of[near]], apart[near]
    # where an image that other files are equal to is left out itself, these are near copies of what stays
    equal = np.flatnonzero((of != _NONE) & (far == _NONE))
    moved = equal[of[of[equal]] != _NONE]
    far[moved], of[moved] = far[of[moved]], of[of[moved]]
