"""By which values 16-bit images are scaled to [0, 1]. Imports no NumPy, as the manifest is read without it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from shards.images.options import VALUES_16

PERCENTILES = (0.1, 99.9)
"""Of the pixels' values, by default."""


@dataclass(frozen=True)
class Scaling:
    """The range of a set's values, per channel: x is scaled to ``clip((x - low) / (high - low), 0, 1)``.

    Attributes:
        percentiles: Which percentiles of all of the set's pixels `low` and `high` are.
        low: Per channel: the least value with at least that percentage of the pixels at or below it.
        high: The same for the other percentile; at least ``low + 1``, in a set of one value too.
    """

    percentiles: tuple[float, float]
    low: tuple[int, ...]
    high: tuple[int, ...]

    @classmethod
    def from_json(cls, values: Any, channels: int) -> Scaling | None:
        """From decoded JSON; KeyError, TypeError or ValueError if it is no range of that number of channels."""
        if values is None:
            return None
        if not isinstance(values, dict):
            raise TypeError(f"scaling is {str(values)[:40]!r}")
        found = cls(tuple(values["percentiles"]), tuple(values["low"]), tuple(values["high"]))
        if not (len(found.low) == len(found.high) == channels and len(found.percentiles) == 2):
            raise ValueError(f"scaling is not of {channels} channels")
        for low, high in zip(found.low, found.high, strict=True):
            if type(low) is not int or type(high) is not int or not 0 <= low < high <= VALUES_16:
                raise ValueError(f"scaling is from {str(low)[:40]} to {str(high)[:40]}")
        check_percentiles(*found.percentiles)
        return found

    def to_json(self) -> dict[str, Any]:
        """The values for JSON."""
        return asdict(self)


def check_percentiles(low: object, high: object) -> None:
    """Raise ValueError unless they are two percentiles, the lower one first."""
    for value in (low, high):
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 100:
            raise ValueError(f"the percentile {str(value)[:40]} is outside 0..100")
    if not low < high:  # type: ignore[operator]  # both are numbers
        raise ValueError(f"the percentile {low} is not below {high}")
