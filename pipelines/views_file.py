"""Views from a TOML file (--views), and the same numbers as config.json has them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pipelines.augmentation import AUGMENTATIONS, ViewPair, ViewSpec
from pipelines.errors import PipelineError
from shards.storage.trial import check_readable
from shards.words import display

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_TABLES = ("query", "key")
_ANY_SIDE = 2**31  # which no blur is too wide for: the numbers are judged first, and the side once all are known
_SETTINGS = ("image_size", "mean", "std")  # of both views, and of what reads the trained encoder
NUMBERS = {each.name: each.default for each in fields(ViewSpec) if each.name not in _SETTINGS}
"""Names that a table may have, with their defaults; side and normalisation are settings of their own."""


def read(path: Path, image_size: int = 224) -> ViewPair:
    """The views of a file, of the side `image_size` in pixels.

    Numbers above the tables are those of both views, those of [query] and [key] of one; ``base`` names the
    augmentation whose numbers the others are, v1 if it is left out.

    Raises:
        PathError: the file cannot be read.
        PipelineError: the file is not TOML, or has a name or a value that no view has. The message names file, table,
            name, value and remedy.
    """
    check_readable("--views", path)
    where = f"--views {display(str(path))}"
    try:
        content = tomllib.loads(path.read_bytes().decode())
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{where} is not TOML: {error}; write lines such as blur = 0.5") from error
    except OSError as error:
        raise PipelineError(f"{where} cannot be read: {error.strerror}; give a TOML file") from error
    return of_tables(content, where, path.name, image_size)


def of_tables(content: Mapping[str, Any], where: str, name: str = "", image_size: int = 224) -> ViewPair:
    """The views of a file's content, or of what `recorded` returns.

    Args:
        content: names, values and tables.
        where: it comes from, for messages.
        name: of the pair; a recorded one has it in ``file``.
        image_size: side of the views in pixels.

    Raises:
        PipelineError: as of `read`.
    """
    numbers = dict(content)
    base, name = numbers.pop("base", "v1"), str(numbers.pop("file", name))
    if not isinstance(base, str) or base not in AUGMENTATIONS:
        raise PipelineError(f"{where}: base={base!r} is no augmentation; use one of {', '.join(AUGMENTATIONS)}")
    tables = {view: numbers.pop(view, {}) for view in _TABLES}
    pair = AUGMENTATIONS[base](_ANY_SIDE)
    specs = {}
    for view, spec in zip(_TABLES, pair, strict=True):
        if not isinstance(tables[view], Mapping):
            raise PipelineError(f"{where}: {view}={tables[view]!r} is no table; write [{view}] above its numbers")
        specs[view] = _changed(_changed(spec, numbers, where), tables[view], f"{where}, [{view}]")
    try:
        return ViewPair(**specs, name=name).changed(image_size=image_size)
    except PipelineError as error:
        raise PipelineError(f"{where}: {error}; or a smaller sigma") from error


def recorded(pair: ViewPair) -> dict[str, Any]:
    """Plain values of both views, for JSON and checkpoints; `of_tables` reads them."""
    return {"file": pair.name} | {view: _numbers(spec) for view, spec in zip(_TABLES, pair, strict=True)}


def differences(before: ViewPair, now: ViewPair) -> dict[str, tuple[Any, Any]]:
    """The numbers that two pairs do not share, before and now, by names such as ``key: solarize``."""
    pairs = zip(_TABLES, before, now, strict=True)
    every = {f"{view}: {name}": (_numbers(a)[name], _numbers(b)[name]) for view, a, b in pairs for name in NUMBERS}
    return {name: values for name, values in every.items() if values[0] != values[1]}


def _numbers(spec: ViewSpec) -> dict[str, Any]:
    values = {name: getattr(spec, name) for name in NUMBERS}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _changed(spec: ViewSpec, numbers: Mapping[str, Any], where: str) -> ViewSpec:
    """The augmentation with the numbers of a table."""
    values = {}
    for name, value in numbers.items():
        if name not in NUMBERS:
            raise PipelineError(f"{where}: {name}={_short(value)} is {_unknown(name, value)}")
        values[name] = _value(name, value, where)
    try:
        return replace(spec, **values)
    except PipelineError as error:
        raise PipelineError(f"{where}: {error}") from error


def _unknown(name: str, value: Any) -> str:
    """What to do about a name that no view has."""
    if name.replace("-", "_") in _SETTINGS:
        return f"not a number of a view; give it by --{name.replace('_', '-')}"
    if name == "base":
        return "not for one view; write it above the tables"
    if isinstance(value, Mapping):
        return "not a view; the tables are [query] and [key], and what stands above them is for both"
    close = get_close_matches(name.replace("-", "_"), NUMBERS)
    return "not a number of a view; " + (f"did you mean {close[0]}?" if close else f"known: {', '.join(NUMBERS)}")


def _value(name: str, value: Any, where: str) -> float | tuple[float, ...]:
    """The value as `ViewSpec` has it."""
    default = NUMBERS[name]
    several = isinstance(default, tuple)
    cause = f"not a list of {len(default)} numbers" if several else "not a number"
    try:
        if not several and _is_number(value):
            return float(value)
        is_list = several and isinstance(value, list | tuple) and len(value) == len(default)
        if is_list and all(map(_is_number, value)):
            return tuple(map(float, value))
    except OverflowError:  # TOML's integers have any number of digits
        cause = "too large"
    example = f"[{', '.join(f'{each:.3g}' for each in default)}]" if several else f"{default:g}"
    raise PipelineError(f"{where}: {name}={_short(value)} is {cause}; write {name} = {example}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)  # a bool is an int to Python


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
