"""Checks of settings by the names of their flags, each with one message: the flag, its value, and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from shards.errors import UserError


class ConfigError(UserError, ValueError):
    """A setting that cannot work. The message names the value, the setting and a remedy."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def flag(name: str) -> str:
    """The flag of a field: `--batch-size` of `batch_size`."""
    return "--" + name.replace("_", "-")


@contextmanager
def named(flag: str) -> Iterator[None]:
    """Put the name of a flag before the message of a UserError that the flag's value causes in the block."""
    try:
        yield
    except UserError as error:
        # the same error, so that its type, exit code and cause stay
        error.args = (f"{flag}: {error}",)
        raise


def at_least(least: float, settings: object, *names: str) -> None:
    """Raise ConfigError for a value below `least`."""
    allowed = "must not be negative" if least == 0 else f"must be at least {least}"
    for name, value in _given(settings, names):
        require(value >= least, f"{flag(name)} is {value}; it {allowed}")
        require(math.isfinite(value), f"{flag(name)} is {value}; it must be finite")


def at_most(most: float, settings: object, *names: str) -> None:
    """Raise ConfigError for a value above `most`."""
    for name, value in _given(settings, names):
        require(value <= most, f"{flag(name)} is {value:,}; it must be at most {most:,}")


_LARGEST: dict[float, tuple[str, ...]] = {
    # pixels on a side of a JPEG
    65_535: ("image_size", "resize", "max_size", "test_size", "min_sizes", "anchor_sizes"),
    # torch's largest seed
    2**63 - 1: ("seed",),
    # names of checkpoints have eight digits for steps
    10**8 - 1: ("epochs", "steps", "iterations"),
    # more than the memory of any machine holds, or than a set has
    2**31 - 1: (
        *("queue_size", "shuffle_buffer", "order_window", "order_lanes", "images_per_epoch", "batch_size", "limit"),
        *("rois_per_image", "test_proposals", "base_batch_size"),
    ),
    65_536: ("feature_dim", "head_width", "fpn_channels"),
    # the v3 heads have two or three
    64: ("head_layers",),
    4_096: ("threads", "prefetch"),
    # at these a step overwrites the weights, and all votes or negatives are equal
    1_000_000: ("lr", "base_lr"),
    1_000: ("temperature", "knn_temperature", "weight_decay"),
}


def check_sizes(settings: object) -> None:
    """Raise ConfigError for a number that no machine, image or optimisation has, of the settings that there are."""
    for most, names in _LARGEST.items():
        at_most(most, settings, *(name for name in names if hasattr(settings, name)))


def positive(settings: object, *names: str) -> None:
    """Raise ConfigError for a value that is not above 0, or not finite."""
    for name, value in _given(settings, names):
        # argparse's float accepts `inf` and `nan`
        require(value > 0 and math.isfinite(value), f"{flag(name)} is {value}; it must be above 0 and finite")


def share(settings: object, *names: str, below_one: bool = False) -> None:
    """Raise ConfigError for a value outside 0..1, or at 1 where it has to stay below."""
    for name, value in _given(settings, names):
        fits = 0 <= value < 1 if below_one else 0 <= value <= 1
        require(fits, f"{flag(name)} is {value}; it must be in 0..1" + (", below 1" if below_one else ""))


def as_fractions(values: tuple[float, ...], epochs: int | None) -> tuple[float, ...]:
    """The values of --milestones as fractions of the run; values above 1 are epochs, as in the original MoCo's code.

    Args:
        values: as the user gave them: all fractions, or all epochs.
        epochs: length of the run in epochs; None where it is given in steps.

    Raises:
        ConfigError: the values are of both kinds, not within the run, or epochs of a run whose length is in steps.
    """
    given = "--milestones " + " ".join(f"{value:g}" for value in values)
    for value in values:
        require(value > 0 and math.isfinite(value), f"{given}: {value} is neither a fraction of the run nor an epoch")
    rising(given, values)
    if all(value < 1 for value in values):
        return values
    require(max(values) > 1, f"{given}: 1 is the end of the run as a fraction; for epoch 1 give 1 / --epochs")
    require(
        min(values) >= 1,
        f"{given} has fractions of the run, which are below 1, and epochs, which are above; give one kind",
    )
    if epochs is None:
        raise ConfigError(f"{given} are epochs, but the length is given by --steps; give fractions of the run, below 1")
    late = [value for value in values if value >= epochs]
    require(not late, f"{given}: epoch {late[0] if late else 0:g} is not within --epochs {epochs}; give earlier ones")
    return tuple(value / epochs for value in values)


def rising(given: str, values: Sequence[float]) -> None:
    """Raise ConfigError for values that fall or repeat; `given` is the flag with its values."""
    fits = all(before < after for before, after in pairwise(values))
    require(fits, f"{given}: each must be above the one before it")


def one_of(known: Iterable[str], settings: object, *names: str) -> None:
    """Raise ConfigError for a name that is not known."""
    known = tuple(known)
    for name, value in _given(settings, names):
        require(value in known, f"unknown {flag(name)} {value!r}; known: {', '.join(known)}")


def some(settings: object, *names: str) -> None:
    """Raise ConfigError for an empty list of values."""
    for name in names:
        require(len(getattr(settings, name)) > 0, f"{flag(name)} has no value; give one or more")


def _given(settings: object, names: Iterable[str]) -> Iterable[tuple[str, Any]]:
    """Name and value of each setting that is not None; of several values, each."""
    for name in names:
        value = getattr(settings, name)
        for each in value if isinstance(value, tuple) else (value,):
            if each is not None:
                yield name, each
