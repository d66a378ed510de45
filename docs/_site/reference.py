"""Reference pages made from the code: every flag of every command and script, every public name of the packages."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path

from tests.documented.parsing import parser_for

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "fastmoco": "Pretraining, and using what was trained.",
    "shards": "Packing, opening and checking shard sets. It does not import torch.",
    "pipelines": "Two views of each image, in an order that is a function of seed, epoch and step.",
}


def commands() -> list[str]:
    """The commands of `fastmoco`, in the order of its help."""
    from fastmoco.__main__ import COMMANDS

    return list(COMMANDS)


def command_page(name: str) -> str:
    """The page of a command."""
    parser = parser_for("fastmoco", [name])
    shown = ["## Examples", "\n".join(["```sh", *parser.examples, "```"])] if parser.examples else []
    return "\n\n".join([f"# fastmoco {name}", _escaped(parser.description or ""), *shown, *_tables(parser)])


def benchmarks_page() -> str:
    """The page of the scripts in benchmarks/."""
    parts = ["# Benchmark scripts", "What they measure, and what came out: [Benchmarks](../benchmarks.md)."]
    for path in sorted((ROOT / "benchmarks").glob("[a-z]*.py")):
        parser = parser_for(f"benchmarks/{path.name}", [])
        parts += [f"## {path.name}", parser.description or "", *_tables(parser, level=3)]
    return "\n\n".join(parts)


def python_page() -> str:
    """The page of the packages' public names."""
    parts = ["# Python", "Every public name of the three packages, with shapes, units and errors."]
    for package, purpose in PACKAGES.items():
        module = importlib.import_module(package)
        parts += [f"## {package}", purpose]
        for name in sorted(module.__all__, key=str.lower):
            if name != "__version__":
                thing = getattr(module, name)
                path = f"{getattr(thing, '__module__', package)}.{getattr(thing, '__qualname__', name)}"
                parts.append(f"::: {path}")
    return "\n\n".join(parts)


def _tables(parser: argparse.ArgumentParser, level: int = 2) -> Iterator[str]:
    """A table for each group of flags that --help lists."""
    formatter, bar = parser._get_formatter(), "\\|"  # which would end a cell
    # what every command has comes last
    for group in sorted(parser._action_groups, key=lambda group: group.title == "other"):
        rows = []
        for action in group._group_actions:
            if action.help == argparse.SUPPRESS or "--help" in action.option_strings:
                continue
            names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
            value = "" if action.nargs == 0 or not action.option_strings else " " + formatter._format_args(
                action, formatter._get_default_metavar_for_optional(action)
            )  # fmt: skip
            text = formatter._expand_help(action) if action.help else ""
            rows.append(f"| `{(names + value).replace('|', bar)}` | {_escaped(text).replace('|', bar)} |")
        if rows:
            title = {"options": "Flags", "positional arguments": "Arguments"}.get(group.title or "", group.title or "")
            yield f"{'#' * level} {title[0].upper()}{title[1:]}"
            yield "\n".join(["| flag | meaning |", "| --- | --- |", *rows])


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;").replace("*", "\\*")
