"""Settings changed by name from Python, with the checks that the command line's parser makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from numbers import Integral
from os import PathLike, fspath
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, SupportsFloat, Union, get_args, get_origin, get_type_hints

from fastmoco.config import Config, ConfigError
from fastmoco.views import alone
from pipelines.augmentation import ViewPair

_WORDS = {
    bool: "True or False", int: "a whole number", float: "a number", str: "text", Path: "a path",
    ViewPair: "a pipelines.ViewPair",
}  # fmt: skip


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """The settings with other values of some.

    Raises:
        ConfigError: A name is no setting, a value has the wrong type or is not among those known, or the settings do
            not fit together.
    """
    hints = _hints()
    for name in changes:
        if name not in hints:
            close = get_close_matches(name, hints)
            remedy = f"did you mean {' or '.join(close)}?" if close else "fastmoco.Config has the names"
            raise ConfigError(f"unknown setting {name}={changes[name]!r}; {remedy}")
    return replace(config, **alone({name: _checked(name, value, hints[name]) for name, value in changes.items()}))


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Config)


def _checked(name: str, value: Any, hint: Any) -> Any:
    """The value as the setting has it; ConfigError if it is of another kind."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None and NoneType in kinds:
        return None
    for kind in kinds:
        if get_origin(kind) is Literal:
            if value in get_args(kind):
                return value
            raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(get_args(kind))}")
        if get_origin(kind) is tuple and isinstance(value, list | tuple):
            return tuple(_checked(name, each, get_args(kind)[0]) for each in value)
        if is_dataclass(kind) and isinstance(value, kind | dict):  # the settings check what a dict holds
            return value
        if kind is str and isinstance(value, str):
            return value
        if kind is Path and isinstance(value, str | PathLike):
            return Path(fspath(value))
        if kind is bool and isinstance(value, bool):
            return value
        # numpy's numbers, too; config.json and checkpoints hold plain ones
        if kind is int and isinstance(value, Integral) and not isinstance(value, bool):
            return int(value)
        if kind is float and isinstance(value, SupportsFloat) and not isinstance(value, bool | str):
            return float(value)
    lists = "a list of numbers" if len(kinds) == 1 else "a list of these"
    words = [_WORDS.get(kind, lists) for kind in kinds if kind is not NoneType]
    raise ConfigError(f"{name} is {value!r}; it must be {' or '.join(dict.fromkeys(words))}")
