"""By which values 16-bit images are scaled to [0, 1], as checkpoints, results and exports record it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from shards.format.scaling import Scaling


class Images(Protocol):
    """A shard set."""

    @property
    def path(self) -> object:
        """Its folder or URL."""
        ...

    @property
    def scaling(self) -> Scaling | None:
        """Of its own percentiles; None with 8 bits."""
        ...


def plain(scaling: Scaling) -> dict[str, Any]:
    """A scaling as JSON has it: `percentiles`, and per channel `low` and `high`."""
    return {name: list(values) for name, values in scaling.to_json().items()}


def scaling_for(recorded: Scaling | None, *sets: Images) -> Scaling | None:
    """By which the 16-bit values of all of these sets are scaled, for one encoder.

    Args:
        recorded: by which those of its training were; None where it records none.
        sets: in a comparison the training set first.

    Returns:
        `recorded`, or in its place that of the first set with 16 bits; None if all have 8 bits.
    """
    found = [each.scaling for each in sets if each.scaling is not None]
    return (recorded or found[0]) if found else None


def differing(used: Scaling | None, *sets: Images) -> str | None:
    """A line for the log where 16-bit sets are scaled by other values than their own percentiles; else None."""
    places = list(dict.fromkeys(str(each.path) for each in sets if each.scaling not in (None, used)))
    if used is None or not places:
        return None
    return f"16-bit values are scaled from {in_words([plain(used)])}, not by the percentiles of {' and '.join(places)}"


def record_of(*scalings: Scaling | None) -> dict[str, Any]:
    """For a record: the scaling of each set, null for one of 8 bits, under `scaling`; nothing where all have 8 bits."""
    found = [None if each is None else plain(each) for each in scalings]
    return {"scaling": found} if any(found) else {}


def common(recorded: Sequence[Any] | None) -> Scaling | None:
    """The scaling that all sets of a record have; None where they have 8 bits, or different ones.

    Raises:
        KeyError, TypeError, ValueError: the record is none of `record_of`.
    """
    found = {read(each) for each in recorded or [None]}
    return found.pop() if len(found) == 1 else None


def bits_of(recorded: Sequence[Any] | None) -> int:
    """Bits of the images in a record of `record_of`: 16, also where the sets have different scalings, or 8."""
    return 16 if any(recorded or ()) else 8


def read(values: Any) -> Scaling | None:
    """The inverse of `plain`, and None of None; raises KeyError, TypeError or ValueError."""
    return None if values is None else Scaling.from_json(values, len(values["low"]))


def in_words(recorded: Sequence[Any] | None) -> str:
    """The ranges in a record, for messages: `1,020 to 3,411`."""
    ranges = [
        ", ".join(f"{low:,} to {high:,}" for low, high in zip(each["low"], each["high"], strict=True))
        for each in recorded or ()
        if each
    ]
    return "; ".join(ranges) or "8 bits"
