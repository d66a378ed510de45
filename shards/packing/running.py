"""Running the tasks of a packing, and what is said of shards that failed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NoReturn

from shards.errors import PackError
from shards.format.layout import shard_name
from shards.format.manifest import ShardRecord
from shards.packing import executors
from shards.packing.progress import Display
from shards.packing.task import Failed, Packed, Progress, Task
from shards.words import counted

_OUT_OF_REACH = 20  # shards in a row that fail because of a store or the network: the others would, too


def run_tasks(
    tasks: Sequence[Task], run: executors.Run, done: dict[int, ShardRecord], shown: Display, check: Callable[[], None]
) -> None:
    """Run the tasks; PackError names the shards that failed."""
    failed: list[Failed] = []
    in_a_row = 0
    # Closing ends the workers at once; garbage collection of the generator would do so at some later time.
    with contextlib.closing(run(tasks)) as events:
        for event in events:
            if isinstance(event, Progress):
                shown.advance(event.images, event.bytes, event.quarantined)
            elif isinstance(event, Packed):
                done[event.shard] = event.record
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
        _raise_failed(failed, sum(task.shard not in done for task in tasks), len(tasks), tasks[0].out)


def _raise_failed(failed: list[Failed], missing: int, total: int, out: str) -> NoReturn:
    again = "run the same command again to continue"
    if any(event.unreachable and not event.cause.startswith(out) for event in failed):
        again += "; --unreachable leave-out packs without images that cannot be reached"
    fatal = next((event for event in failed if event.fatal), None)
    if fatal:
        text = f"stopped at {shard_name(fatal.shard)}: {fatal.cause}; {counted(missing, 'shard')} of {total:,} left"
        raise PackError(f"{text}; when that is fixed, {again}")
    names = "; ".join(f"{shard_name(event.shard)}: {event.cause}" for event in failed[:5])
    more = f"; and {len(failed) - 5:,} more" if len(failed) > 5 else ""
    raise PackError(f"{missing:,} of {counted(total, 'shard')} failed ({names}{more}); when that is fixed, {again}")
