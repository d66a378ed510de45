"""Checks of settings by the names of their flags, each with one message: the flag, its value, and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
