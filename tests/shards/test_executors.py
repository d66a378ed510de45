from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shards import PackError, PackOptions, pack
from shards.images.options import EncodeOptions
from shards.packing.executors import opened, require
from shards.packing.executors._attempts import ATTEMPTS, Attempts
from shards.packing.executors._pool import Pool
from shards.packing.output import held
from shards.packing.plan import WORK, keep_plan, read_shard
from shards.packing.planning import make_plan
from shards.packing.sources import open_source
from shards.packing.task import Event, Failed, Packed, Progress, Task
from shards.storage.files import partial
from shards.storage.store import open_store
from tests.support.commands import fastmoco_shard
from tests.support.folders import same_files

EXECUTORS = ["local", pytest.param("ray", marks=pytest.mark.slow)]


@pytest.fixture
def executor(request) -> str:
    if request.param == "ray":
        request.getfixturevalue("started_ray")
    return request.param


def run(tasks: list[Task], workers: int, executor: str = "local") -> Generator[Event, None, None]:
    with opened(workers, executor) as packed:
        yield from packed(tasks)


def workers_of(process: int) -> list[int]:
    """Process ids of the pool's workers."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


def writers(out: Path, shard: str = "shard-") -> Iterator[int]:
    """Process ids of those that have a half-written shard of `out` open."""
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = os.readlink(descriptor)
        except OSError:
            continue
        if target.startswith(f"{out}/{shard}") and ".partial" in target:
            yield int(descriptor.parts[2])


def kill_a_reader_of(image: Path, out: Path, shard: str, killed: list[int]) -> threading.Thread:
    """Replace an image by a pipe, at which its reader waits; a thread kills the reader and restores the image."""
    aside = image.with_name("aside")
    image.rename(aside)
    os.mkfifo(image)

    def hunt() -> None:
        pipe = None
        deadline = time.monotonic() + 100  # against a hang
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # while nobody reads it
                pipe = pipe or os.open(image, os.O_WRONLY | os.O_NONBLOCK)
            for process in writers(out, shard) if pipe else ():
                aside.replace(image)
                os.kill(process, signal.SIGKILL)
                killed.append(process)
                os.close(pipe)
                return
            time.sleep(0.05)
        os.close(pipe or os.open(image, os.O_RDWR))  # no reader came: do not block a later one

    thread = threading.Thread(target=hunt)
    thread.start()
    return thread


def tasks_for(folder: Path, out: Path) -> list[Task]:
    options = PackOptions(folder, out, shard_size=25)
    store = open_store(out)
    with held(store):
        plan = make_plan(options, open_source(options), out / WORK / "making")
        keep_plan(store, out / WORK / "making", plan)
    return [Task(str(folder), store.url, shard, plan.identity, EncodeOptions()) for shard in range(plan.shards)]


@pytest.mark.parametrize("executor", EXECUTORS, indirect=True)
def test_a_worker_killed_in_the_middle_of_a_shard_costs_nothing(folder, packed, tmp_path, executor):
    out, images = tmp_path / "out", shutil.copytree(folder, tmp_path / "images")
    killed: list[int] = []
    tasks = tasks_for(images, out)
    image = read_shard(open_store(out), 2)[12].path
    hunter = kill_a_reader_of(images / os.fsdecode(image), out, "shard-000002", killed)
    events = list(run(tasks, 2, executor))
    hunter.join()
    assert killed and killed[0] != os.getpid()
    assert {event.number for event in events if isinstance(event, Packed)} == {0, 1, 2, 3, 4}
    assert not any(isinstance(event, Failed) for event in events)
    assert sum(event.images for event in events if isinstance(event, Progress)) == 120
    pack(PackOptions(folder, out, workers=1, shard_size=25), progress=False)
    assert same_files(packed, out)


def test_a_shard_that_kills_its_workers_is_tried_again_and_then_named(folder, tmp_path):
    """Every worker is killed until one shard has used up its attempts; the others are packed."""
    tasks = tasks_for(folder, tmp_path / "out")
    os.mkfifo(tmp_path / "fifo")
    plan = tmp_path / "out" / "packing.partial" / "plan.offsets"
    events, kept = [], plan.read_bytes()
    plan.unlink()
    os.mkfifo(plan)  # a reader of the plan waits here for ever
    generator = run(tasks[:2], workers=2)
    for event in generator:
        events.append(event)
        if len([e for e in events if isinstance(e, Failed)]) < 1:
            os.kill(workers_of(os.getpid())[0], signal.SIGKILL)
        else:
            plan.unlink()
            plan.write_bytes(kept)
            break
    generator.close()
    assert events[-1].cause == f"its worker died {ATTEMPTS} times (killed by SIGKILL; out of memory?)"
    assert not workers_of(os.getpid())


def test_a_worker_that_dies_between_two_shards_is_replaced(folder, tmp_path):
    """After its last message on a shard and before it asks for the next one."""
    with Pool(1) as pool:
        pool._attempts = Attempts(tasks_for(folder, tmp_path / "out"), 1)
        (worker,) = pool._workers
        worker.process.kill()
        assert list(pool._hear(worker)) == []
        (other,) = pool._workers
        assert other is not worker and list(other.tasks) == [0]


ORPHAN = """
import multiprocessing, pickle, sys
from shards.packing.executors import _pool

_pool._end_with_parent = lambda: None  # which may come later than what this process finds
here, there = multiprocessing.Pipe()
here.send(pickle.loads(sys.stdin.buffer.read()))
here.close()
_pool._work(there)
"""


def test_a_worker_that_cannot_report_takes_its_unfinished_file_away(folder, tmp_path):
    """Its parent has died: the worker may notice this at its next report."""
    task = pickle.dumps(tasks_for(folder, tmp_path / "out")[0])
    ended = subprocess.run([sys.executable, "-c", ORPHAN], input=task, capture_output=True)
    assert (ended.stderr, ended.returncode) == (b"", 128 + signal.SIGTERM)
    assert not list((tmp_path / "out").glob("shard-*"))


def test_attempts_take_lost_progress_back_and_end_where_every_worker_dies(tmp_path):
    tasks = [Task(tmp_path, tmp_path, shard, "", EncodeOptions()) for shard in range(9)]
    attempts = Attempts(tasks, workers=2)
    task = attempts.next()
    attempts.heard(task, Progress(3, 300, 1))
    attempts.heard(task, Progress(2, 200, 0))
    assert list(attempts.lost(task, "gone")) == [Progress(-5, -500, -1)]
    assert attempts.next() is task
    attempts.heard(task, Progress(1, 100, 0))
    for _ in range(2 * ATTEMPTS):  # failures caused by others do not count
        assert list(attempts.again(task)) in ([Progress(-1, -100, 0)], [])
        assert attempts.next() is task
    assert not any(isinstance(event, Failed) for event in attempts.lost(task, "gone"))
    assert attempts.next() is task
    found = [event for _ in range(30) if (again := attempts.next()) for event in attempts.lost(again, "gone")]
    assert [event.fatal for event in found[:3]] == [False, False, True]
    assert "workers died in a row (gone)" in found[2].cause


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("executor", EXECUTORS, indirect=True)
def test_failed_shards_are_named_and_the_others_packed(folder, tmp_path, workers, executor):
    tasks = tasks_for(folder, tmp_path / "out")
    tasks[2] = replace(tasks[2], number=99)
    events = list(run(tasks, workers, executor))
    failed = {event.number: event.cause for event in events if isinstance(event, Failed)}
    assert set(failed) == {99}
    assert executor == "local" or f"(on {os.uname().nodename})" in failed[99]
    assert {event.number for event in events if isinstance(event, Packed)} == {0, 1, 3, 4}


@pytest.mark.parametrize("executor", EXECUTORS, indirect=True)
def test_closed_early_an_executor_leaves_nothing_running_and_nothing_half_written(folder, tmp_path, executor):
    out = tmp_path / "out"
    events = run(tasks_for(folder, out), 2, executor)
    assert any(isinstance(event, Packed) for event in events)
    events.close()
    assert not list(writers(out))
    assert not list(out.glob("shard-*.partial"))


@pytest.mark.slow
def test_ray_packs_the_same_bytes_from_another_working_folder(started_ray, folder, packed, tmp_path, monkeypatch):
    """Relative paths are relative to the command's folder, not the workers'."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moved").symlink_to(folder)
    pack(PackOptions(Path("moved"), Path("out"), workers=2, shard_size=25, executor="ray"), progress=False)
    assert same_files(packed, tmp_path / "out")


@pytest.mark.slow
def test_a_node_with_other_software_is_refused(started_ray, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("shards.packing.executors._ray.made_by", lambda *more: {"pillow": "1.0"})
    events = list(run(tasks_for(folder, tmp_path / "out")[:1], 1, "ray"))
    failed = [event for event in events if isinstance(event, Failed)]
    assert len(failed) == 1 and failed[0].fatal
    assert "the driver {'pillow': '1.0'}: the bytes might differ" in failed[0].cause


def test_a_command_with_a_failed_shard_names_it_and_ends_with_an_error(folder, tmp_path):
    out = tmp_path / "out"
    (out / "shard-000003.npy").mkdir(parents=True)
    result = fastmoco_shard("--src", folder, "--out", out, "--shard-size", 25, "--workers", 2)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "1 of 5 shards failed (shard-000003: " in result.stderr
    assert "run the same command again" in result.stderr
    assert not list(out.glob("*.partial/*.partial")) and not list(out.glob("shard-*.partial"))
    (out / "shard-000003.npy").rmdir()
    assert fastmoco_shard("--src", folder, "--out", out, "--shard-size", 25).returncode == 0


def test_two_writers_of_one_shard_do_not_meet(tmp_path):
    """A worker that outlives its parent and the one that replaces it write different files."""
    line = "import pathlib; from shards.storage.files import partial; print(partial(pathlib.Path('shard-000000.tar')))"
    names = {
        subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(names) == 2
    assert partial(tmp_path / "a") == partial(tmp_path / "a")


def test_what_ray_needs_is_checked_before_the_planning(monkeypatch, folder, tmp_path):
    with pytest.raises(PackError, match="--ray-address here:1 is for --executor ray, not for --executor local"):
        require("local", "here:1")
    with pytest.raises(PackError, match="run this on a node of the cluster"):
        require("ray", "ray://here:10001")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PackError, match=r"pip install 'fastmoco\[ray\]'"):
        pack(PackOptions(folder, tmp_path / "out", executor="ray"), progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_address_without_a_cluster_is_one_clear_error(folder, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    arguments = ("--executor", "ray", "--ray-address", "127.0.0.1:9")
    result = fastmoco_shard("--src", folder, "--out", tmp_path / "out", *arguments)
    assert result.returncode == 2
    assert "fastmoco-shard: no connection to Ray at --ray-address 127.0.0.1:9" in result.stderr


@pytest.mark.slow
def test_a_folder_whose_path_is_too_long_for_ray_is_named_with_a_remedy(folder, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    (tmp_path / ("long" * 20)).mkdir()
    env = {**os.environ, "RAY_TMPDIR": str(tmp_path / ("long" * 20))}
    result = fastmoco_shard("--src", folder, "--out", tmp_path / "out", "--executor", "ray", env=env)
    assert result.returncode == 2
    assert "Ray cannot be started here (" in result.stderr
    assert "set RAY_TMPDIR to a folder with a shorter path, such as /tmp, or use --executor local" in result.stderr
