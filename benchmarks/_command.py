"""How every script starts and ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from shards.command import command
from shards.errors import UserError

A = TypeVar("A")


class BenchmarkError(UserError, ValueError):
    """A measurement that cannot be made as requested; the message names the reason and a remedy."""


def script(arguments: type[A], run: Callable[[A], int | None]) -> NoReturn:
    """Parse the command line into `arguments`, run, and end the process as `shards.command.command` does."""
    import tyro  # not at the top: processes whose memory is measured import scripts, too

    name = Path(sys.argv[0]).stem
    command(name, lambda: run(tyro.cli(arguments, prog=f"{name}.py")))


def at_least(least: int, args: Any, *names: str) -> None:
    """Raise BenchmarkError for the first of these flags with a value that is too small; None passes."""
    for name in names:
        value = getattr(args, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and number < least:
                raise BenchmarkError(f"--{name.replace('_', '-')} is {number}; it must be at least {least}")
