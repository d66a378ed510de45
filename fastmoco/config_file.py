"""Settings from a file for --config: the config.json of a run, or TOML with the names of flags."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fastmoco.flags import ConfigError, require
from fastmoco.settings import RECORDED
from shards.format.manifest import parse_json

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a text"}


def path_of(arguments: Sequence[str]) -> Path | None:
    """The value of --config on a command line, the last if there are several."""
    found = None
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if word == "--config" and following:
            found = following
        elif word.startswith("--config="):
            found = word.removeprefix("--config=")
    return None if found is None else Path(found)


def read(path: Path, kind: type) -> dict[str, Any]:
    """The settings in a file, by the names of a dataclass's fields.

    Args:
        path: JSON if its name ends in .json, else TOML. Names may have dashes or underscores. What a run records in its
            config.json besides settings is ignored.
        kind: the dataclass.

    Raises:
        ConfigError: the file cannot be read, has a name that is no setting, or a value of another type.
    """
    named = {}
    for name, value in _content(path).items():
        field = name.replace("-", "_")
        require(field not in named, f"--config {path} has {field} twice, with - and with _; leave one out")
        named[field] = value
    if path.suffix == ".json":
        named = {name: value for name, value in named.items() if name not in RECORDED}
    known = [field.name for field in fields(kind)]
    for name in named:
        close = get_close_matches(name, known)
        remedy = f"did you mean {' or '.join(close)}?" if close else "the flags of --help are its names"
        require(name in known, f"--config {path}: unknown setting {name!r}; {remedy}")
    hints = get_type_hints(kind)
    return {name: _value(f"--config {path}: {name}", value, hints[name]) for name, value in named.items()}


def _content(path: Path) -> Mapping[str, Any]:
    try:
        data = path.read_bytes()
        content = parse_json(data) if path.suffix == ".json" else tomllib.loads(data.decode())
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read: {error.strerror}; give a config.json or a TOML") from error
    except (ValueError, RecursionError) as error:  # of both parsers, and of bytes that are no text
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"--config {path} is not {kind}: {error}; a run's settings are its config.json") from error
    require(isinstance(content, dict), f"--config {path} holds no names with values; give a config.json or a TOML")
    return content


def _value(what: str, value: Any, hint: Any) -> Any:
    """`value` as the field has it; raises ConfigError unless it has the type `hint`."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None and NoneType in kinds:
        return None
    if isinstance(value, dict) and any(map(is_dataclass, kinds)):
        return value  # the settings check what a table holds
    kind = kinds[0]
    if isinstance(value, list):  # of one or many
        kind = next((each for each in kinds if get_origin(each) is tuple), kind)
    if get_origin(kind) is Literal:
        require(value in get_args(kind), f"{what} is {value!r}; it must be one of {', '.join(get_args(kind))}")
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{what} is {value!r}; it must be a list")
        return tuple(_value(what, each, get_args(kind)[0]) for each in value)
    taken = {float: (int, float), Path: str}.get(kind, kind)
    # a bool is an int to Python
    fits = isinstance(value, taken) and (kind is bool or not isinstance(value, bool))
    require(fits, f"{what} is {value!r}; it must be {_WORDS[kind]}")
    return kind(value)
