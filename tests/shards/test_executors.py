from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

from shards import PackOptions, pack
from shards.executors import run
from shards.options import EncodeOptions
from shards.output import held
from shards.plan import WORK, keep_plan
from shards.planning import make_plan
from shards.sources import open_source
from shards.store import open_store
from shards.task import Failed, Packed, Task


def workers_of(process: int) -> list[int]:
    """Process ids of the pool's workers."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


def tasks_for(folder: Path, out: Path) -> list[Task]:
    options = PackOptions(folder, out, shard_size=25)
    store = open_store(out)
    with held(store):
        plan = make_plan(options, open_source(options), out / WORK / "making")
        keep_plan(store, out / WORK / "making", plan)
    return [Task(str(folder), store.url, shard, plan.identity, EncodeOptions()) for shard in range(plan.shards)]


def test_a_killed_worker_is_replaced_and_its_shard_packed(folder, packed, tmp_path, helpers):
    out = tmp_path / "out"
    events, killed = [], False
    for event in run(tasks_for(folder, out), workers=2):
        events.append(event)
        if not killed:
            os.kill(workers_of(os.getpid())[0], signal.SIGKILL)
            killed = True
    assert {event.shard for event in events if isinstance(event, Packed)} == {0, 1, 2, 3, 4}
    assert not any(isinstance(event, Failed) for event in events)
    pack(PackOptions(folder, out, workers=1, shard_size=25), progress=False)
    assert helpers.same_files(packed, out)


def test_failed_shards_are_named_and_the_others_packed(folder, tmp_path):
    """In a process and in a pool alike."""
    for workers in (1, 2):
        out = tmp_path / str(workers)
        tasks = tasks_for(folder, out)
        tasks[2] = replace(tasks[2], shard=99)
        (out / "shard-000003.tar.partial").mkdir()
        events = list(run(tasks, workers))
        failed = {event.shard: event.cause for event in events if isinstance(event, Failed)}
        assert set(failed) == {3, 99}
        assert "Is a directory" in failed[3]
        assert {event.shard for event in events if isinstance(event, Packed)} == {0, 1, 4}
