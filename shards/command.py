"""The ending of every command: its exit code, or one line on stderr for what the user can mend."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from shards.errors import UserError
from shards.words import display

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
CLOSED_PIPE = 141  # 128 + SIGPIPE


def command(name: str, run: Callable[[], int | None], interrupted: str = "interrupted") -> NoReturn:
    """Run a command and end the process.

    A UserError, an OSError and Ctrl-C become one line on stderr. A closed pipe on stdout ends silently. Any other
    exception is a defect of the program and keeps its traceback.

    Args:
        name: The command as the user typed it, `fastmoco.knn`.
        run: The command; returns its exit code, or None for 0.
        interrupted: Message after Ctrl-C.

    Raises:
        SystemExit: Always. 2 for an OSError, `exit_code` for a UserError, 130 for Ctrl-C.
    """
    try:
        code = run() or 0
        sys.stdout.flush()  # so that a closed pipe raises here, not while Python shuts down
    except UserError as error:
        _report(name, str(error), on_this_rank=error.one_rank)
        code = error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discard what is still buffered
        code = CLOSED_PIPE
    except OSError as error:
        _report(name, _in_words(error), on_this_rank=True)
        code = UserError.exit_code
    except KeyboardInterrupt:
        _report(name, interrupted)
        code = INTERRUPTED
    raise SystemExit(code)


def _report(name: str, message: str, on_this_rank: bool = False) -> None:
    """Print one line on stderr: on rank 0 alone if all ranks fail alike, on this rank if it may be the only one."""
    rank = os.environ.get("RANK", "0")
    if on_this_rank or rank == "0":
        where = f"{name} (rank {rank})" if on_this_rank and rank != "0" else name
        print(f"{where}: {message}", file=sys.stderr)


def _in_words(error: OSError) -> str:
    if error.strerror is None:
        return str(error) or type(error).__name__
    names = [display(os.fspath(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return f"{' -> '.join(names)}: {error.strerror}" if names else error.strerror
