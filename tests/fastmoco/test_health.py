"""What harms a run from outside: each warned of once, with a remedy, until it has passed."""

from __future__ import annotations

import os
import resource
import shutil
import time
from types import SimpleNamespace

import pytest
import torch

from fastmoco.checkpoints.saving import Keeping
from fastmoco.limits import memory_left
from fastmoco.ranks.world import World
from fastmoco.runs import health, tempo
from fastmoco.runs.throttling import Throttling
from fastmoco.runs.warnings import collected
from tests.fastmoco.test_run import Counting


@pytest.fixture
def said(caplog):
    """What was warned of, and what has passed, since the last call."""
    caplog.set_level("INFO")
    with collected():

        def messages():
            found = list(caplog.messages)
            caplog.clear()
            return found

        yield messages


def test_a_disk_that_cannot_hold_the_checkpoints_to_come_is_named(tmp_path, said):
    free = shutil.disk_usage(tmp_path).free
    newest = tmp_path / "step-00000001.pt"
    newest.touch()
    with newest.open("r+b") as file:
        file.truncate(free * 2 // 5)  # sparse: it takes no room
    health.disk(tmp_path, Keeping(1))
    health.disk(tmp_path, Keeping(3, most_bytes=free))  # which is room for one beside the one that is written
    assert said() == []
    for _ in range(2):
        health.disk(tmp_path, Keeping(3))
    (message,) = said()
    assert "GB are free on the disk of" in message and "the next 3 checkpoints need" in message
    newest.write_bytes(b"small")
    health.disk(tmp_path, Keeping(3))
    assert said() == ["the warning 'disk' has passed"]


@pytest.mark.parametrize(("jump", "says"), [(-3600, "jumped 1 h 00 min backwards"), (7, "jumped 7 s forwards")])
def test_a_clock_that_is_set_is_named_and_one_that_is_corrected_slowly_is_not(monkeypatch, said, jump, says):
    wall, steady = 1e9, 100.0
    monkeypatch.setattr(time, "time", lambda: wall)
    monkeypatch.setattr(time, "monotonic", lambda: steady)
    clock = health.Clock()
    for correction in (0, 1, 4, jump, 0):
        wall, steady = wall + 30 + correction, steady + 30
        clock.look()
    (message,) = said()
    assert says in message
    wall, steady = wall + 4000, steady + 4000
    clock.look()
    assert said() == ["the warning 'clock' has passed"]


def test_too_many_open_files_are_named(said):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(40)]
    try:
        health.open_files()
        assert said() == []
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened[-1] + 3, before[1]))
        health.open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in opened:
            os.close(descriptor)
    (message,) = said()
    number, rest = message.split(" ", 1)  # other threads open and close files, too
    assert 40 < int(number) <= opened[-1] + 3 and rest.startswith(f"of at most {opened[-1] + 3} files are open")


def test_little_memory_is_named(tmp_path, said):
    health.memory(100 << 30, 4 << 30)
    assert said() == []
    health.memory(100 << 30, 2 << 30)
    (message,) = said()
    assert message.startswith("2.1 GB of 107.4 GB of memory are left: the kernel may end this process")
    # a container's share, without the pages of files, which make room
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/job\n")
    group = tmp_path / "sys/fs/cgroup/job"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.current").write_text("900000\n")
    (group / "memory.stat").write_text("anon 300000\ninactive_file 400000\nactive_file 200000\n")
    assert memory_left(tmp_path) == (1_000_000, 700_000)


def test_a_gpu_is_throttled_if_it_is_so_several_times_in_a_row(said):
    gpu = Throttling(SimpleNamespace(name="NVIDIA H200"))
    for bits in (0x40, 0x40, 0x01, 0x40, 0x04, 0x40, 0x41):
        gpu.judge(bits)
    assert said() == []
    gpu.judge(0x68)
    (message,) = said()
    assert (
        "the NVIDIA H200 on" in message and "the hardware lowers its clocks (power or heat), it is too hot;" in message
    )
    gpu.judge(0x01)
    assert said() == ["the warning 'gpu_throttled' has passed"]


class Line:
    """Log lines of a run of several ranks, by a clock of the test's."""

    def __init__(self, monkeypatch, ranks):
        self.now, self.step, self.ranks = 0.0, 0, ranks
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.tempo = tempo.Tempo(World(0, ranks, torch.device("cpu")), [f"node{rank // 2}" for rank in range(ranks)])

    def __call__(self, waits, own, seconds=20.0, steps=20):
        self.now, self.step = self.now + seconds, self.step + steps
        rows = [value for wait, each in zip(waits, own, strict=True) for value in (wait, each * steps, steps)]
        self.tempo.judge(rows, self.step)


def test_waits_for_images_are_named_once_they_have_lasted(monkeypatch, said):
    line = Line(monkeypatch, 4)
    none, own = [0.0] * 4, [0.1] * 4
    for _ in range(3):  # the first is not counted: it fills caches
        line([0, 0, 4.0, 0], own)
    assert said() == []
    with pytest.raises(KeyError), line.tempo.paused():  # an evaluation that fails is no time of steps either
        line.now += 1000
        raise KeyError
    line([0, 0, 4.0, 0], own)
    (message,) = said()
    assert message.startswith("steps waited for images 20 % of the last 60 s on rank 2 on node1: reading or decoding")
    line([0, 0, 4.0, 0], own)
    for _ in range(2):
        line([0, 0, 1.0, 0], own)  # 6 of 60 seconds
    assert said() == []
    for _ in range(3):
        line(none, own)
    assert said() == ["the warning 'data_wait' has passed"]


def test_a_rank_that_is_slower_than_the_others_is_named(monkeypatch, said):
    line = Line(monkeypatch, 4)
    for _ in range(4):
        line([0] * 4, [0.100, 0.110, 0.090, 0.119])
    assert said() == []
    for _ in range(3):
        line([0] * 4, [0.100, 0.110, 0.090, 0.121])
    (message,) = said()
    assert message.startswith(
        "rank 3 on node1 takes 121 ms for what takes the other ranks 100 ms (encoding the queries,"
    )
    for _ in range(3):
        line([0] * 4, [0.100] * 4)
    assert said() == ["the warning 'slow_rank' has passed"]


def test_a_run_measures_the_waits_for_its_batches_and_leaves_evaluations_out(monkeypatch, tmp_path, said):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(tempo, "LEAST_STEPS", 5)

    class Waiting(Counting):
        def save_if_due(self, every):
            nonlocal now
            now += 20.0  # the step
            if self.step == 7:
                with self.evaluating():
                    list(self.timed(batch(9)))
                    now += 10_000

    def batch(place):
        nonlocal now
        now += 5.0  # of which five times four are more than 5 % of 125 seconds, and less than 1 % of 10,000
        yield place

    run = Waiting(tmp_path)
    monkeypatch.setattr(run, "batches", lambda epoch: run.timed(place for step in range(10) for place in batch(step)))
    run.run(checkpoint_every=0)
    assert [message for message in said() if "waited" in message] == [
        "steps waited for images 20 % of the last 125 s: reading or decoding is too slow; give more --threads, put the "
        "shards on a local disk, or pack with --resize"
    ]
