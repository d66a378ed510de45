"""Runs fastmoco-shard, which sends itself a signal as soon as some shards are complete.

usage: python -m tests.support.struck SIGNAL WHOM SHARDS FLAGS OF FASTMOCO-SHARD

A test that looks for a shard and then sends the signal may be too late: meanwhile the packing may have ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Generator, Sequence
from typing import Any

from shards import cli
from shards.packing import pack
from shards.packing.executors import Run
from shards.packing.task import Event, Packed, Work


def struck(number: signal.Signals, shards: int, *flags: object, group: bool = True) -> list[str]:
    """The command line of a packing that is struck by a signal; to be run in `commands.ROOT`.

    Args:
        number: The signal.
        shards: How many shards it has packed by then, and taken note of.
        flags: Of fastmoco-shard.
        group: Whether the signal is for the whole process group, and not for the process that started the workers.
    """
    whom = "group" if group else "alone"
    return [sys.executable, "-m", "tests.support.struck", number.name, whom, str(shards), *map(str, flags)]


def main() -> None:
    """Run the command."""
    name, whom, shards, *flags = sys.argv[1:]
    run_tasks, packed = pack.run_tasks, 0

    def strike() -> None:
        (os.killpg if whom == "group" else os.kill)(os.getpid(), signal.Signals[name])

    def until_struck(tasks: Sequence[Work], run: Run, *more: Any) -> None:
        def events(tasks: Sequence[Work]) -> Generator[Event, None, None]:
            nonlocal packed
            with contextlib.closing(run(tasks)) as all_events:
                for event in all_events:
                    yield event
                    packed += isinstance(event, Packed)
                    if isinstance(event, Packed) and packed == int(shards):
                        strike()

        run_tasks(tasks, events, *more)

    pack.run_tasks = until_struck
    sys.argv = ["fastmoco-shard", *flags]
    cli.main()


if __name__ == "__main__":
    main()
