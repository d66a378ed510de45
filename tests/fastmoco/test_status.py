"""RUN/status.json and the warnings of a run."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import signal
import sys
import time
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from fastmoco.flags import ConfigError
from fastmoco.ranks.endings import PeerError
from fastmoco.ranks.heartbeat import beating
from fastmoco.ranks.world import World
from fastmoco.runs import status as status_module
from fastmoco.runs.errors import Stopped
from fastmoco.runs.folder import Wanted, run_folder
from fastmoco.runs.notify import check_command
from fastmoco.runs.status import reported
from fastmoco.runs.warnings import passed, warn
from shards.interrupts import Interrupts
from tests.fastmoco.test_run import CPU, Counting
from tests.support.runs import metrics


def status(folder):
    return json.loads((folder / "status.json").read_text())


def run(folder, act=lambda run: None, notify=None):
    """Run ten steps in a run folder; `act` is called before each checkpoint."""

    class Acting(Counting):
        def save_if_due(self, every):
            act(self)
            super().save_if_due(every)

    with run_folder(folder, CPU, Wanted("count", 10, lambda *_: None), notify):
        Acting(folder).run(checkpoint_every=4)


def test_the_status_says_where_a_run_stands_and_how_it_ended(tmp_path):
    run(tmp_path)
    said = status(tmp_path)
    assert (said["state"], said["reason"], said["step"], said["total_steps"], said["epoch"]) == (
        "finished", None, 10, 10, 2.5
    )  # fmt: skip
    assert said["figures"] == {"value": 10.0} and said["time_left_seconds"] == 0 and said["ranks"] == 1
    assert said["last_checkpoint"] == str(tmp_path / "checkpoints" / "step-00000010.pt")
    run(tmp_path)  # there is nothing to do
    assert status(tmp_path) == said


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (Stopped("stopped after step 3"), "stopped", "stopped after step 3"),
        (RuntimeError("out of\nmemory"), "failed", "RuntimeError: out of memory"),
        (KeyboardInterrupt(), "stopped", "interrupted"),
    ],
)
def test_the_status_has_the_reason_of_an_end(tmp_path, error, state, reason):
    def fail(run):
        if run.step == 3:
            raise error

    with pytest.raises(type(error)):
        run(tmp_path, fail)
    said = status(tmp_path)
    assert (said["state"], said["reason"], said["step"]) == (state, reason, 3)


def test_all_steps_make_a_run_finished_though_a_callback_asks_for_a_stop_after_the_last(tmp_path):
    run(tmp_path, lambda run: run.at_end and run.stop_early())
    assert status(tmp_path)["state"] == "finished"


def test_the_reason_is_that_of_the_rank_that_failed_not_of_those_that_noticed(tmp_path):
    ranks = [World(rank, 2, torch.device("cpu")) for rank in (0, 1)]
    (tmp_path / "config.json").touch()  # a run that has begun
    (tmp_path / "failed-rank.txt").write_text("of an earlier run")

    def end(error):
        with pytest.raises(PeerError), reported(tmp_path, ranks[0]):
            with pytest.raises(type(error)), reported(tmp_path, ranks[1]):
                raise error
            raise PeerError("rank 1 has failed")
        assert not (tmp_path / "failed-rank.txt").exists()
        return status(tmp_path)["reason"]

    assert end(MemoryError("no memory\nleft")) == f"rank 1 on {platform.node()}: MemoryError: no memory left"
    # it noticed only that another one is gone
    assert end(RuntimeError("[third_party/gloo/x.cc:1] Connection closed")) == "rank 1 has failed"


def test_the_figures_of_steps_that_were_taken_back_are_no_longer_said(tmp_path):
    seen = []

    class Later(Counting):
        def advance(self):
            super().advance()
            seen.append((self.step, status_module._open[-1]["figures"]))

        def save_if_due(self, every):
            if self.step == 7 and len(seen) == 7:
                raise MemoryError
            super().save_if_due(every)

    for _ in range(2):
        with suppress(MemoryError), run_folder(tmp_path, CPU, Wanted("count", 10, lambda *_: None)):
            Later(tmp_path).run(checkpoint_every=4)
    figures = [figures for _, figures in seen]
    # value is recorded after the steps 5 and 10; after the failure the run continues from step 4
    assert figures == [{}] * 5 + [{"value": 5.0}] * 2 + [{}] + [{"value": 5.0}] * 5
    with reported(tmp_path, CPU):
        assert status_module._open[-1]["figures"] == {"value": 10.0}
        again = Counting(tmp_path)
        again.resume()
        with again.opened({}):
            again.go_back(8, {})
            assert status_module._open[-1]["figures"] == {"value": 5.0}


class Clock:
    """Time, of which a pause lasts until another rank has beaten, however busy the machine is."""

    monotonic, time = staticmethod(time.monotonic), staticmethod(time.time)

    def __init__(self, other, start):
        self.other, self.start = other, start

    def sleep(self, seconds):
        self.other = self.other or self.start()
        before, deadline = self.other._count, time.monotonic() + 60
        while self.other._count < before + 2:  # the last one may not be in the store yet
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("of_rank_1", "state", "reason"),
    [
        ("asked", "stopped", "interrupted"),
        ("alive", "stopped", "interrupted"),  # in C code, which a signal does not interrupt
        ("late", "stopped", "interrupted"),  # its first beat comes between two looks
        (
            "killed",
            "failed",
            "rank 1 has ended before the first step, and torchrun ended the others; look at its output",
        ),
    ],
)
def test_sigterm_before_the_first_step_is_a_stop_unless_torchrun_sends_it_as_a_rank_has_died(
    tmp_path, monkeypatch, of_rank_1, state, reason
):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    interrupts = Interrupts("")
    monkeypatch.setattr(Interrupts, "current", interrupts)
    (tmp_path / "config.json").touch()  # a run that has begun
    store, soon = dist.TCPStore("127.0.0.1", 0, is_master=True), timedelta(seconds=1)
    with ExitStack() as stack:
        one = stack.enter_context(beating(store, 0, 2, soon))
        if of_rank_1 in ("alive", "late"):

            def start():
                return stack.enter_context(beating(store, 1, 2, soon))

            clock = Clock(start() if of_rank_1 == "alive" else None, start)
            monkeypatch.setattr("fastmoco.ranks.heartbeat.time", clock)
        elif of_rank_1 == "killed":
            with beating(store, 1, 2, soon):
                pass
        else:
            with pytest.raises(KeyboardInterrupt), beating(store, 1, 2, soon):
                raise KeyboardInterrupt
        interrupts.number = signal.SIGTERM
        with pytest.raises(KeyboardInterrupt), reported(tmp_path, World(0, 2, CPU.device, heartbeat=one)):
            raise KeyboardInterrupt
    assert (status(tmp_path)["state"], status(tmp_path)["reason"]) == (state, reason)


def test_an_unwritable_status_ends_no_run(tmp_path, caplog):
    file = tmp_path / "status.json"

    def act(run):
        while run.step == 2 and not file.is_dir():
            file.unlink(missing_ok=True)
            with contextlib.suppress(FileExistsError):  # written again between the two
                file.mkdir()

    run(tmp_path, act)
    assert caplog.text.count("status.json cannot be written (Is a directory)") == 1


def test_a_warning_is_said_once_until_it_has_passed(tmp_path, caplog):
    def act(run):
        if run.step in (2, 3, 4, 7):
            warn("slow_disk", f"the disk is slow at step {run.step}")
        if run.step == 5:
            passed("slow_disk")

    run(tmp_path, act)
    assert [message for message in caplog.messages if "disk is slow" in message] == [
        "the disk is slow at step 2", "the disk is slow at step 7"
    ]  # fmt: skip
    assert [line for line in metrics(tmp_path) if "warning" in line] == [
        {"step": 2, "epoch": 0.5, "warning": "slow_disk", "message": "the disk is slow at step 2"},
        {"step": 5, "epoch": 1.25, "warning": "slow_disk", "passed": True},
        {"step": 7, "epoch": 1.75, "warning": "slow_disk", "message": "the disk is slow at step 7"},
    ]
    (left,) = status(tmp_path)["warnings"]
    assert (left["name"], left["message"], left["step"]) == ("slow_disk", "the disk is slow at step 7", 7)


def test_a_start_that_fails_leaves_no_status_in_an_empty_folder(tmp_path):
    (tmp_path / "b").mkdir()
    with pytest.raises(ZeroDivisionError), run_folder(tmp_path / "b", CPU, Wanted("count", 10, lambda *_: None)):
        raise ZeroDivisionError
    assert list((tmp_path / "b").iterdir()) == []


NOTIFY = """
import json, os, sys
told = json.load(sys.stdin)
names = ("EVENT", "MESSAGE", "STATE", "STEP", "TOTAL_STEPS", "RUN")
variables = [os.environ["FASTMOCO_" + name] for name in names]
line = [variables, *(told[name] for name in ("event", "step", "message", "figures"))]
with open(sys.argv[1], "a") as file:
    print(json.dumps(line), file=file)
"""


def test_a_command_of_the_users_is_told_of_warnings_and_the_end(tmp_path):
    def act(run):
        if run.step == 2:
            warn("slow_disk", "the disk is slow")
        if run.step == 7:
            raise RuntimeError("out of memory")

    script, told, folder = tmp_path / "notify me.py", tmp_path / "told", tmp_path / "run"
    script.write_text(NOTIFY)
    command = shlex.join([sys.executable, "-S", str(script), str(told)])
    with pytest.raises(RuntimeError):
        run(folder, act, command)
    lines = [json.loads(line) for line in told.read_text().splitlines()]
    failed = "RuntimeError: out of memory"
    assert lines == [
        [["warning", "the disk is slow", "running", "2", "10", str(folder)], "warning", 2, "the disk is slow", {}],
        [["failed", failed, "failed", "7", "10", str(folder)], "failed", 7, failed, {"value": 5.0}],
    ]
    run(folder, notify=command)
    assert json.loads(told.read_text().splitlines()[2])[0][:2] == ["finished", ""]
    run(folder, notify=command)  # there is nothing to do
    assert len(told.read_text().splitlines()) == 3


def test_a_command_of_the_users_is_told_once_of_a_run_that_was_stopped_with_its_last_step(tmp_path):
    def act(run):
        if run.at_end:
            os.kill(os.getpid(), signal.SIGTERM)

    told = tmp_path / "told"
    command = shlex.join(["sh", "-c", f"echo $FASTMOCO_EVENT >> {told}"])
    with pytest.raises(Stopped):
        run(tmp_path / "run", act, command)
    for _ in range(2):
        run(tmp_path / "run", notify=command)
    assert told.read_text().split() == ["stopped", "finished"]


def test_a_command_that_fails_or_hangs_ends_no_run(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("fastmoco.runs.notify.PATIENCE", 0.5)
    run(tmp_path / "a", notify=shlex.join(["sh", "-c", "echo no network >&2; exit 3"]))
    run(tmp_path / "b", notify="sleep 600")
    run(tmp_path / "c", notify="/nowhere/to/be/found")
    assert [message.partition("--notify ")[2] for message in caplog.messages if "--notify" in message] == [
        "sh -c 'echo no network >&2; exit 3' ended with 3: no network",
        "sleep 600 took longer than 0 s and was ended",
        "/nowhere/to/be/found: [Errno 2] No such file or directory: '/nowhere/to/be/found'",
    ]


@pytest.mark.parametrize(
    ("given", "says"), [("'a", "No closing quotation"), ("no-such-command x", "there is no command")]
)
def test_a_command_that_cannot_be_run_is_refused_before_training(given, says):
    check_command(None)
    check_command("sh notify.sh")
    with pytest.raises(ConfigError, match=says):
        check_command(given)


def test_the_monitors_read_the_status(tmp_path, in_process):
    run(tmp_path)
    monitoring = Path(__file__).parents[2] / "deploy" / "monitoring"
    lines = in_process(monitoring / "prometheus.py", tmp_path).stdout.splitlines()
    assert {f'fastmoco_{name}{{run="{tmp_path.name}"}} {value}' for name, value in (("step", 10), ("value", 10.0))} <= {
        *lines
    }
    assert in_process(monitoring / "lost.py", tmp_path).stdout == ""
    said = status(tmp_path) | {"state": "running", "updated": "2026-01-02T03:04:05+00:00"}
    (tmp_path / "status.json").write_text(json.dumps(said))
    lost = in_process(monitoring / "lost.py", tmp_path, check=False)
    assert lost.returncode == 1 and f"{tmp_path}: no sign of rank 0 on" in lost.stdout
