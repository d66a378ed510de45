"""Command lines from dataclasses: a field is a flag, and the docstring below the field is the flag's help.

argparse, not a library that reads dataclasses: an error has to be one line that one rank prints, and flags have to
keep their names in groups. Such libraries offer the first through private interfaces only.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from fastmoco import config_file as files
from fastmoco.flags import flag, require
from shards.command import Parser

T = TypeVar("T")
_CONFIG_FILE = "config_file"  # what the parser calls --config; no setting has this name
_METAVARS = {int: "INT", float: "FLOAT", Path: "PATH"}


def parse(
    kind: type[T], name: str, arguments: Sequence[str] | None = None, groups: Mapping[str, type] | None = None
) -> T:
    """An instance of a dataclass from the command line.

    Args:
        kind: The dataclass; the first line of its docstring is the command's description.
        name: The command, `fastmoco knn`.
        arguments: What follows the command's name; None for the process's own.
        groups: As `parser_of` has them.

    Raises:
        shards.command.UsageError: The arguments do not parse. `kind` may raise its own errors for their values.
    """
    return kind(**vars(parser_of(kind, name, groups=groups).parse_args(arguments)))


def given_in_file(kind: type, arguments: Sequence[str]) -> dict[str, Any]:
    """The settings in the file that --config names on a command line; empty without it."""
    path = files.path_of(arguments)
    return {} if path is None else files.read(path, kind)


def parser_of(
    kind: type,
    name: str,
    *,
    defaults: object = None,
    groups: Mapping[str, type] | None = None,
    description: str | None = None,
    examples: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
) -> CommandParser:
    """A parser with a flag for each field of a dataclass; it parses to the fields' values.

    A bool is a pair of flags, --name and --no-name; a tuple takes any number of values, and where the
    field may also be a single value, at least one; an optional field accepts None.

    Args:
        kind: The dataclass.
        name: The command.
        defaults: Instance whose values are the defaults; None for the fields' own.
        groups: Titles, each with the base class of `kind` whose flags it lists. The other flags come first.
        description: First paragraph of the help; None for the first line of the docstring.
        examples: Command lines for the end of the help; {prog} stands for the command.
        given: Settings of the file of --config, which replace the defaults; None for a command without --config.
    """
    hints, helps = get_type_hints(kind), _docstrings(kind)
    default_of = {f.name: _default(f) if defaults is None else getattr(defaults, f.name) for f in fields(kind)}
    default_of |= given or {}
    parser = CommandParser(
        name,
        description=description or (inspect.getdoc(kind) or "").partition("\n")[0],
        epilog="A flag without a value is switched off by --no-FLAG."
        if any(bool in (hint, *get_args(hint)) for hint in hints.values())
        else None,
        examples=examples,
    )
    if given is not None:
        about = "File of settings: the config.json of a run, or TOML. Flags override it, and it overrides --recipe."
        parser.add_argument("--config", metavar="FILE", dest=_CONFIG_FILE, default=None, help=about)
    bases = {title: parser.add_argument_group(title) for title in groups or {}}
    group_of = {f.name: bases[title] for title, base in (groups or {}).items() for f in fields(base)}
    for key, default in default_of.items():
        # argparse formats help texts with %
        text = helps.get(key, "") + _as_shown(default)
        _add(group_of.get(key, parser), key, hints[key], default, text.replace("%", "%%"))
    return parser


def recipe_of(arguments: Sequence[str], default: str, given: Mapping[str, Any]) -> str:
    """The value of --recipe, whose settings are the other flags' defaults.

    Args:
        arguments: The command line.
        default: The recipe where neither names one.
        given: Settings of the file of --config.

    Raises:
        ConfigError: The command line and the file name different recipes.
    """
    in_file = given.get("recipe")
    # a pass of its own before the parser is built: the recipe sets the defaults that --help prints
    finder = CommandParser("fastmoco", add_help=False)
    finder.add_argument("--recipe", default=in_file or default)
    named = finder.parse_known_args(arguments)[0].recipe
    require(
        in_file in (None, named),
        f"--recipe is {named}, but {in_file} in the file of --config; leave out --recipe, or change the file's",
    )
    return named


# flags of the original MoCo, moco-v3 and others, and what they are here; None: what torchrun does
_ORIGINALS = {
    **{"-a": "--arch", "-b": "--batch-size", "-j": "--threads", "-p": "--log-every"},
    **{"--workers": "--threads", "--print-freq": "--log-every", "--learning-rate": "--lr", "--wd": "--weight-decay"},
    **{"--moco-dim": "--feature-dim", "--moco-k": "--queue-size", "--moco-m": "--momentum-key"},
    **{"--moco-t": "--temperature", "--mlp": "--head mlp", "--aug-plus": "--augmentation v2"},
    **{"--cos": "--schedule cosine", "--moco-m-cos": "--momentum-key-schedule cosine", "--start-epoch": "--resume"},
    **{
        "--schedule": "--milestones",
        "--pretrained": "--checkpoint",
        "--warmup-epochs": "--warmup, a fraction of the run",
    },
    **{"--data": "--shards", "--dataset": "--shards", "--num-workers": "--threads", "--model": "--arch"},
    **{"--amp": "--precision auto", "--fp16": "--precision fp16"},
    **dict.fromkeys(
        ("--multiprocessing-distributed", "--dist-url", "--dist-backend", "--world-size", "--rank", "--gpu")
    ),
}


class CommandParser(Parser):
    """A parser that accepts --batch_size for --batch-size, and answers the original MoCo's flags with its own."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse arguments whose flags are spelt with dashes."""
        words = [_with_dashes(word) for word in (sys.argv[1:] if args is None else args)]
        known = {option for action in self._actions for option in action.option_strings}
        for word, following in zip(words, [*words[1:], ""], strict=False):
            name = word.partition("=")[0] if word.startswith("--") else word[:2]  # -b256
            if name in known:
                if name == "--schedule" and following.isdigit():
                    self.error("--schedule takes a name; the epochs of the original are --schedule step --milestones …")
            elif name in _ORIGINALS:
                ours = _ORIGINALS[name]
                if ours is None:
                    self.error(f"unknown flag {name}; torchrun sets processes and devices: torchrun --nproc-per-node N")
                if ours.split(",")[0].split()[0] in known:
                    self.error(f"unknown flag {name}; here it is {ours}")
        parsed = super().parse_args(words, namespace)
        vars(parsed).pop(_CONFIG_FILE, None)  # read before: its settings are the flags' defaults
        return parsed

    def error(self, message: str) -> NoReturn:
        """Raise UsageError; a folder of images, which the original takes, is answered with how it is packed."""
        known = {option for action in self._actions for option in action.option_strings}
        if message.startswith("unrecognized arguments: ") and "--shards" in known and ": -" not in message:
            message += "; pack images by fastmoco pack --src DIR --out SET, and give --shards SET"
        super().error(message)


class _Tuple(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        # argparse collects lists; the settings are frozen dataclasses of tuples
        setattr(namespace, self.dest, tuple(values))


def _add(group: argparse._ActionsContainer, key: str, hint: Any, default: Any, text: str) -> None:
    options: dict[str, Any] = {"dest": key, "default": default, "help": text, "required": default is MISSING}
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kind = kinds[0]  # of `str | Path` the settings make a Path where it is no URL
    # not argparse.BooleanOptionalAction, which prints both spellings of every flag in the help
    if kind is bool:
        group.add_argument(flag(key), action="store_true", **options)
        options["help"] = argparse.SUPPRESS
        group.add_argument(flag(f"no_{key}"), action="store_false", **options)
        return
    if get_origin(kind) is Literal:
        options["choices"] = get_args(kind)
    else:
        if get_origin(kind) is tuple:
            kind = get_args(kind)[0]
            # none is a value too: --milestones without one keeps the rate constant
            options |= {"nargs": "*", "action": _Tuple}
        elif any(get_origin(other) is tuple for other in kinds):
            options |= {"nargs": "+", "action": _Tuple}
        options["metavar"] = "PATH" if Path in kinds else _METAVARS.get(kind, key.upper())
        options["type"] = _optional(kind) if NoneType in kinds else kind
    group.add_argument(flag(key), **options)


def _optional(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        return None if text in ("None", "none") else kind(text)

    read.__name__ = getattr(kind, "__name__", "")  # argparse's message says "invalid int value"
    return read


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _as_shown(default: Any) -> str:
    if isinstance(default, tuple):
        default = " ".join(map(str, default))
    if default is MISSING or default is None or default is False or default == "":
        return ""
    return f" (default: {'on' if default is True else default})"


def _with_dashes(word: str) -> str:
    name, equals, value = word.partition("=")
    return (name.replace("_", "-") if word.startswith("--") else name) + equals + value


def _docstrings(kind: type) -> dict[str, str]:
    """The string below each field, by the field's name, of a dataclass and its bases."""
    found = {}
    # bases first, so that a class may describe a field of its base in other words. Python keeps no docstrings of fields
    # at run time, so they are read from the source
    for base in reversed(kind.__mro__):
        if is_dataclass(base):
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            assert isinstance(definition, ast.ClassDef)
            for field, text in pairwise(definition.body):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    found[ast.unparse(field.target)] = ast.literal_eval(text.value)
    return found
