"""By which values 16-bit images are scaled to [0, 1], as checkpoints, results and exports record it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from shards.format.scaling import Scaling


class _Images(Protocol):
    """A shard set."""

    @property
    def scaling(self) -> Scaling | None: ...


def plain(scaling: Scaling) -> dict[str, Any]:
    """A scaling as JSON has it: `percentiles`, and per channel `low` and `high`."""
    return {name: list(values) for name, values in scaling.to_json().items()}


def scalings_of(*sets: _Images) -> dict[str, Any]:
    """For a record: the scaling of each set, null for one of 8 bits, under `scaling`; nothing where all have 8 bits."""
    found = [None if each.scaling is None else plain(each.scaling) for each in sets]
    return {"scaling": found} if any(found) else {}


def common(recorded: Sequence[Any] | None) -> Scaling | None:
    """The scaling that all sets of a record have; None where they have 8 bits, or different ones.

    Raises:
        KeyError, TypeError, ValueError: the record is none of `scalings_of`.
    """
    found = {read(each) for each in recorded or [None]}
    return found.pop() if len(found) == 1 else None


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
