"""The skeleton of runs: stopping, continuing, and files that a full disk must not leave half written."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmoco.checkpoints import checkpoint, saving
from fastmoco.layouts.files import write_arrays, write_tensors
from fastmoco.model.moco import Contrast
from fastmoco.probes.cache import cached_parts
from fastmoco.ranks.world import World
from fastmoco.runs.errors import Stopped
from fastmoco.runs.run import Run
from fastmoco.settings import CheckpointSettings
from fastmoco.trainer.window import Window
from shards.interrupts import SIGNALS
from shards.words import counted
from tests.support.limits import files_limited_to

SCRIPTS = Path(__file__).parent / "scripts"
CPU = World(0, 1, torch.device("cpu"))
ALL = [(step // 4, step % 4) for step in range(10)]


class Counting(Run):
    """Ten steps, four an epoch; keeps the batches that it has seen."""

    layout = "counting/1"

    def __init__(self, folder, kind="a"):
        super().__init__(
            CPU, folder, steps_per_epoch=4, total_steps=10, saving=CheckpointSettings(keep_checkpoints=20), batch_size=8
        )
        self.kind, self.seen = kind, []

    def state(self):
        return {"kind": {"kind": self.kind}, "progress": {"step": self.step}, "seen": list(self.seen)}

    def load_state(self, state):
        self.seen = state["seen"]

    def check_resumable(self, path, state):
        checkpoint.check_identity(path, state["kind"], {"kind": self.kind}, "count")

    def run(self, checkpoint_every, stop_at=None):
        resumed = self.resume()
        with self.opened({"kind": self.kind}):
            for batch in self.batches(lambda epoch, first: iter([(epoch, place) for place in range(first, 4)])):
                self.seen.append(batch)
                self.advance()
                if self.step == stop_at:
                    os.kill(os.getpid(), signal.SIGTERM)
                if self.due(5):
                    (value,) = self.sum_over_ranks(torch.tensor([float(self.step)]))
                    self.record({"value": value}, f"value {value}")
                self.save_if_due(checkpoint_every)
        return resumed


def saved(folder):
    return [int(path.stem.removeprefix("step-")) for path in reversed(checkpoint.found(folder / "checkpoints"))]


def test_a_run_saves_when_it_is_due_and_at_the_end(tmp_path):
    run = Counting(tmp_path)
    assert not run.run(checkpoint_every=4)
    assert run.seen == ALL and saved(tmp_path) == [4, 8, 10]
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records == [{"step": 5, "epoch": 1.25, "value": 5.0}, {"step": 10, "epoch": 2.5, "value": 10.0}]
    assert Counting(tmp_path).run(4) and saved(tmp_path) == [4, 8, 10]


def test_after_ten_steps_the_log_estimates_the_whole_run_evaluations_included(tmp_path, monkeypatch, caplog):
    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    monkeypatch.setattr("shards.progress.time", clock := Clock())

    class Evaluated(Counting):
        evaluation = "kNN probe"

        def __init__(self, folder):
            Run.__init__(self, CPU, folder, 4, 1000, CheckpointSettings(), batch_size=8, evaluate_every=300)

        def evaluate(self):
            with self.evaluating():
                clock.now += 41

    caplog.set_level("INFO")
    run = Evaluated(tmp_path)
    with run.opened({}):
        run.evaluate()
        for step in range(1, 12):
            clock.now += 30 if step < 4 else 2  # the first three compile
            run.advance()
            if step in (1, 11):
                run.record({"value": 1.0}, "value 1.0")
    cores = len(os.sched_getaffinity(0))
    assert caplog.messages == [
        "step 1/1000  time left not known yet  value 1.0",
        f"about 35 min 44 s left: 990 steps at 4.0 images/s on {counted(cores, 'core')}, and 4 kNN probes of 41 s",
        "step 11/1000  35 min 42 s left  value 1.0",
    ]


def test_without_a_number_of_steps_a_checkpoint_is_due_every_ten_minutes(tmp_path, monkeypatch):
    now = 0.0

    class Slow(Counting):
        def advance(self):
            nonlocal now
            now += 250
            self.end_saving()  # in so long a time the checkpoint before is complete
            super().advance()

    monkeypatch.setattr(time, "monotonic", lambda: now)
    Slow(tmp_path).run(checkpoint_every=0)
    assert saved(tmp_path) == [3, 6, 9, 10]


@pytest.mark.parametrize("stop_at", [1, 4, 7, 10])
def test_a_stopped_run_is_saved_and_continues(tmp_path, stop_at):
    with pytest.raises(Stopped, match=f"stopped after step {stop_at}; the same command continues from there"):
        Counting(tmp_path).run(checkpoint_every=4, stop_at=stop_at)
    assert saved(tmp_path)[-1] == stop_at
    again = Counting(tmp_path)
    assert again.run(checkpoint_every=4) and again.seen == ALL
    with pytest.raises(checkpoint.CheckpointError, match=r"of another count: kind was 'a', now 'b'. Choose another"):
        Counting(tmp_path, "b").run(4)


@pytest.mark.parametrize("number", SIGNALS)
def test_later_signals_do_not_end_the_save(tmp_path, number, caplog):
    class Saving(Counting):
        def state(self):
            os.kill(os.getpid(), number)
            for other in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
                os.kill(os.getpid(), other)
            return super().state()

    handlers = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Stopped, match="SIGTERM: stopped after step 3;") as stopped:
        Saving(tmp_path).run(checkpoint_every=0, stop_at=3)
    assert stopped.value.stopped_by == signal.SIGTERM and saved(tmp_path) == [3]
    assert [signal.getsignal(each) for each in SIGNALS] == handlers
    name = signal.Signals(number).name
    assert [line for line in caplog.messages if "SIG" in line] == [
        "SIGTERM: finishing the step, then writing a checkpoint",
        f"{name}: the run is stopping already; the checkpoint is written first",
    ]


def test_a_run_that_waits_for_its_images_stops_at_once(tmp_path):
    def images(epoch, first):
        yield 0
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGHUP]).start()
        while True:  # not one long wait: a signal just before it would not end it
            time.sleep(0.01)

    run = Counting(tmp_path)
    with pytest.raises(Stopped, match="SIGHUP: stopped after step 1;") as stopped, run.opened({}):
        for _ in run.batches(images):
            run.advance()
            run.save_if_due(0)
    assert stopped.value.stopped_by == signal.SIGHUP and saved(tmp_path) == [1]


def test_a_wait_for_images_is_logged_once_a_minute(tmp_path, caplog):
    run, now = Counting(tmp_path), time.perf_counter()
    for seconds in (30, 61, 62, 90, 121):
        run._fetching_since = now - seconds
        run._say_wait()
    assert caplog.messages == [f"the run has waited {minutes} min 00 s for images after step 0" for minutes in (1, 2)]


def test_images_that_cannot_be_read_end_a_run_with_its_last_step_saved(tmp_path):
    def images(epoch, first):
        yield 0
        raise OSError(28, "No space left on device")

    run = Counting(tmp_path)
    with pytest.raises(OSError, match="No space left"), run.opened({}):
        for _ in run.batches(images):
            run.advance()
    assert saved(tmp_path) == [1]


def test_ctrl_c_pressed_three_times_ends_a_save_and_says_what_is_lost(tmp_path, command):
    ended = command(sys.executable, SCRIPTS / "impatient.py", tmp_path, check=False)
    assert ended.returncode == 130
    assert [line.partition(" WARNING ")[2] for line in ended.stderr.splitlines() if "SIG" in line] == [
        "SIGINT: finishing the step, then writing a checkpoint",
        "SIGINT again: the checkpoint is written first; once more ends at once, and the steps after 2 are lost",
        "SIGINT for the third time: ending at once; the steps after 2 are lost",
    ]
    assert saved(tmp_path) == [2]


STOPS = {
    **dict.fromkeys(("signal", "data", "early"), "stopped"),
    **dict.fromkeys(("failed", "user", "unsaved"), "failed"),
}  # status.json's word for each case of stop.py


@pytest.mark.distributed
def test_a_signal_or_a_failure_of_one_of_two_ranks_stops_both_at_the_same_step(tmp_path, torchrun):
    torchrun(2, SCRIPTS / "stop.py", tmp_path)
    again = "stopped after step 4; the same command continues from there"
    for case in ("signal", "data"):
        assert [(tmp_path / f"{case}-{rank}").read_text() for rank in (0, 1)] == [f"Stopped SIGTERM: {again}"] * 2
    assert [(tmp_path / f"early-{rank}").read_text() for rank in (0, 1)] == [f"Stopped {again}"] * 2
    assert (tmp_path / "failed-1").read_text() == "StoreError shard-000000.tar cannot be read"
    assert (tmp_path / "user-1").read_text() == "AssertionError two and two"
    said = "PeerError rank 1 has failed; the state after step 4 is saved. Fix the error"
    assert all((tmp_path / f"{case}-0").read_text().startswith(said) for case in ("failed", "user"))
    # and a stop without a checkpoint is none
    unsaved = [(tmp_path / f"unsaved-{rank}").read_text() for rank in (0, 1)]
    lost = "File exists; check that disk, then run the same command again, which continues from the last checkpoint; "
    assert unsaved[0].startswith(
        "Unsaved SIGTERM: the state after step 4 could not be saved: the checkpoint could not "
    )
    assert unsaved[0].endswith(f"{lost}the steps after 0 are lost, and there is no checkpoint")
    assert unsaved[1] == "PeerError SIGTERM: the state after step 4 is not saved, for the reason that rank 0 printed"
    states = {case: json.loads((tmp_path / case / "status.json").read_text())["state"] for case in STOPS}
    assert states == STOPS


def test_the_rate_counts_the_wait_for_the_device():
    """The host may be steps ahead of a GPU. Reading the figures waits for it, and that time belongs to the steps."""
    window = Window(torch.device("cpu"))
    for _ in range(3):
        window.add(Contrast(torch.tensor(2.0), torch.tensor(0.5), torch.tensor(1.0)), waited=0.0)

    def start_sum(values):
        def after_a_while():
            time.sleep(0.3)
            return values.tolist()

        return after_a_while

    arriving = window.start_reading(16, torch.tensor(0.25), start_sum)
    window.add(Contrast(torch.tensor(9.0), torch.tensor(0.0), torch.tensor(9.0)), waited=1e6)  # of the next figures
    figures = arriving()
    assert [figures[name] for name in ("loss", "accuracy", "spread", "queue_fill")] == [2.0, 0.5, 1.0, 0.25]
    assert figures["imgs_per_sec"] <= 3 * 16 / 0.3 and figures["data_wait"] == 0
    later = window.start_reading(16, torch.tensor(0.5), start_sum)()
    assert (later["loss"], later["spread"], later["queue_fill"]) == (9.0, 9.0, 0.5)
    assert later["imgs_per_sec"] <= 16 / 0.3 and later["data_wait"] > 1


def test_a_failed_write_names_the_file_and_leaves_none_half_written(tmp_path):
    values = torch.zeros(100, 100)
    writers = {
        "step-00000001.pt": lambda: saving.save(tmp_path, {"progress": {"step": 1}, "values": values}, 1),
        "weights.pth": lambda: write_tensors(tmp_path / "weights.pth", {"a": values}, {}),
        "weights.safetensors": lambda: write_tensors(tmp_path / "weights.safetensors", {"a": values}, {}),
        "weights.pkl": lambda: write_arrays(tmp_path / "weights.pkl", {"a": values.numpy()}),
        "features-0-of-1.npy": lambda: cached_parts(
            tmp_path, {"samples": 100}, CPU, (100, 100), lambda out: np.copyto(out, 1)
        ),
    }
    with files_limited_to(5_000):
        for name, write in writers.items():
            with pytest.raises(OSError, match="File too large") as failed:
                write()
            assert failed.value.filename.endswith(f"/{name}")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
