"""How every script starts and ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from shards.command import command
from shards.errors import UserError

A = TypeVar("A")


class BenchmarkError(UserError, ValueError):
    """A measurement cannot be made as requested; the message names the reason and a remedy."""


def script(arguments: type[A], run: Callable[[A], int | None]) -> NoReturn:
    """Parse the command line into `arguments`, run, and end the process as `shards.command.command` does."""
    from fastmoco.commandline import parse  # not at the top: processes whose memory is measured import scripts, too
    from shards.storage.trial import check_file

    name = Path(sys.argv[0]).stem

    def checked() -> int | None:
        args = parse(arguments, f"python {sys.argv[0]}")
        for flag in ("json", "out"):  # the rows of hours of measurements
            check_file(f"--{flag}", getattr(args, flag, None))
        return run(args)

    command(name, checked)
