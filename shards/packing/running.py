"""Running the tasks of a packing, and what is said of shards that failed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NoReturn

from shards.errors import PackError
from shards.format.manifest import ShardRecord
from shards.packing import executors
from shards.packing.progress import Display
from shards.packing.task import Done, Failed, Packed, Progress, Work
from shards.words import counted

_OUT_OF_REACH = 20  # shards in a row that fail because of a store or the network: the others would, too


def run_tasks(
    tasks: Sequence[Work],
    run: executors.Run,
    done: dict[int, ShardRecord],
    shown: Display,
    check: Callable[[], None],
    noun: str = "shard",
) -> None:
    """Run the tasks and collect the records of shards in `done`; PackError names the tasks that failed."""
    failed: list[Failed] = []
    missing = {task.number: task.name for task in tasks}
    in_a_row = 0
    # Closing ends the workers at once; garbage collection of the generator would do so at some later time.
    with contextlib.closing(run(tasks)) as events:
        for event in events:
            if isinstance(event, Progress):
                shown.advance(event.images, event.bytes, event.quarantined)
            elif isinstance(event, Done):
                if isinstance(event, Packed):
                    done[event.number] = event.record
                missing.pop(event.number)
                in_a_row = 0
            elif isinstance(event, Failed):
                in_a_row = in_a_row + 1 if event.unreachable else 0
                if in_a_row == _OUT_OF_REACH:
                    event = replace(event, cause=f"{event.cause}; so did the {in_a_row - 1} before it", fatal=True)
                failed.append(event)
                if event.fatal:
                    break
            check()
            shown.tick()
    if failed:
        _raise_failed(failed, missing, tasks, noun)


def _raise_failed(failed: list[Failed], missing: dict[int, str], tasks: Sequence[Work], noun: str) -> NoReturn:
    """Raise the error of failures; `missing` are the names of all tasks that are not done."""
    total, again = len(tasks), "run the same command again to continue"
    left_out = getattr(tasks[0], "leave_out", False)  # what cannot be reached
    if not left_out and any(event.unreachable and not event.cause.startswith(tasks[0].out) for event in failed):
        again += "; --unreachable leave-out packs without images that cannot be reached"
    fatal = next((event for event in failed if event.fatal), None)
    if fatal:
        text = f"stopped at {missing[fatal.number]}: {fatal.cause}; {counted(len(missing), noun)} of {total:,} left"
        raise PackError(f"{text}; when that is fixed, {again}")
    names = "; ".join(f"{missing[event.number]}: {event.cause}" for event in failed[:5])
    more = f"; and {len(failed) - 5:,} more" if len(failed) > 5 else ""
    raise PackError(f"{len(missing):,} of {counted(total, noun)} failed ({names}{more}); when that is fixed, {again}")
