"""The command `fastmoco doctor`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fastmoco.commandline import CommandParser, parser_of
from fastmoco.doctor.findings import Finding
from fastmoco.flags import ConfigError
from fastmoco.results import check_file, write_json
from shards.command import command

NAME = "fastmoco doctor"
_MARKS = {"ok": "ok  ", "note": "note", "warn": "WARN", "stop": "STOP"}
_COLOURS = {"ok": "32", "note": "36", "warn": "33", "stop": "1;31"}  # green, cyan, yellow, bold red


@dataclass(frozen=True)
class CheckSettings:
    """What is examined."""

    dir: Path = Path()
    """Folder whose disk is measured, by a temporary file of up to 256 MiB: that of the shards or of the runs."""


@dataclass(frozen=True)
class OutputSettings:
    """The result."""

    json: Path | None = None
    """File to write the result to; - prints it instead of the lines."""


GROUPS: dict[str, type] = {"checks": CheckSettings, "output": OutputSettings}
"""Groups of flags in the order in which --help lists them."""


@dataclass(frozen=True)
class Args(OutputSettings, CheckSettings):
    """Say what this machine has, what stops or slows training on it, and the remedy for each. Takes about 15 s.

    Exit code: 0 if training can run, 1 if something stops it.
    """

    def __post_init__(self) -> None:
        """Raise ConfigError where there is no such folder."""
        if not self.dir.is_dir():
            raise ConfigError(f"--dir {self.dir} is not a folder; give an existing one")


def main() -> None:
    """Entry of the command."""
    command(NAME, _main)


def parser() -> CommandParser:
    """The command's parser."""
    return parser_of(
        Args, NAME, groups=GROUPS, examples=("{prog}", "{prog} --dir /data/shards", "{prog} --json doctor.json")
    )


def _main() -> int:
    args = Args(**vars(parser().parse_args()))
    printed = args.json == Path("-")
    if not printed:
        check_file("--json", args.json)
    print("examining packages, GPUs, the data backend and the disk; about 15 seconds", file=sys.stderr, flush=True)
    found = []
    for finding in examine(args.dir):
        found.append(finding)
        if not printed:
            show(finding)
    result = {"can_train": can_train(found), "findings": [asdict(finding) for finding in found]}
    if printed:
        print(json.dumps(result, indent=2))
    else:
        print(summary(found))
        if args.json is not None:
            write_json(args.json, result)
    return 0 if can_train(found) else 1


def examine(folder: Path) -> Iterator[Finding]:
    """All findings, each as soon as it is known."""
    from fastmoco.doctor.disk import disk
    from fastmoco.doctor.machine import machine
    from fastmoco.doctor.packages import packages

    of_packages = list(packages())
    yield from of_packages
    yield from machine()
    rate = None
    # without its packages torch, or what needs it, cannot be asked
    if can_train(of_packages):
        from fastmoco.doctor.gpus import gpus
        from fastmoco.doctor.loading import loading

        yield from gpus()
        found, rate = loading()
        yield found
    yield disk(folder, rate)


def can_train(found: Sequence[Finding]) -> bool:
    """Whether nothing stops training."""
    return all(finding.level != "stop" for finding in found)


def show(finding: Finding) -> None:
    """Print a finding and its remedy as one line; in colour in a terminal."""
    # not by rich, which may be what is missing
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    mark = f"\x1b[{_COLOURS[finding.level]}m{_MARKS[finding.level]}\x1b[0m" if coloured else _MARKS[finding.level]
    remedy = f"; {finding.remedy}" if finding.remedy else ""
    print(f"{mark}  {finding.topic:<13} {finding.text}{remedy}", flush=True)


def summary(found: Sequence[Finding]) -> str:
    """The last line: whether training can run."""
    stops = [finding.topic for finding in found if finding.level == "stop"]
    slows = [finding.topic for finding in found if finding.level == "warn"]
    if stops:
        return f"training cannot run: see {', '.join(stops)}"
    return "training can run" + (f"; {', '.join(slows)} can be improved" if slows else "")


if __name__ == "__main__":
    main()
