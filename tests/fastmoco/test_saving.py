"""Checkpoints that are written while the steps go on, and which of them are kept."""

from __future__ import annotations

import resource
import threading
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastmoco.checkpoints import checkpoint
from fastmoco.checkpoints.saving import Keeping, Saver
from fastmoco.checkpoints.snapshot import Snapshot
from fastmoco.ranks.world import World
from fastmoco.runs.disk import DiskError
from fastmoco.runs.errors import Stopped, TrainingError
from fastmoco.runs.run import Run
from fastmoco.runs.status import read, reported
from fastmoco.settings import CheckpointSettings
from tests.fastmoco.test_run import ALL, CPU, Counting, saved
from tests.support.limits import files_limited_to


@pytest.mark.parametrize(
    ("keep", "written", "left"),
    [
        (Keeping(1), 6, [6]),
        (Keeping(2), 6, [5, 6]),
        (Keeping(9), 6, [1, 2, 3, 4, 5, 6]),
        (Keeping(1, every=2), 6, [2, 4, 6]),
        (Keeping(2, every=4), 6, [4, 5, 6]),
        # 10 bytes each, and the bound goes first; those of epochs go before the newest
        (Keeping(6, most_bytes=30), 6, [4, 5, 6]),
        (Keeping(2, every=2, most_bytes=30), 6, [4, 5, 6]),
        (Keeping(2, every=1, most_bytes=39), 6, [4, 5, 6]),
        (Keeping(3, most_bytes=1), 6, [6]),
        # later ones are damaged, or were taken back: the one just written is the newest sound one
        (Keeping(1), 3, [3, 4, 5, 6]),
        (Keeping(2, most_bytes=20), 3, [2, 3, 4, 5, 6]),
    ],
)
def test_which_checkpoints_are_kept(keep, written, left):
    sizes = dict.fromkeys(range(1, 7), 10)
    assert [step for step in sizes if step not in keep.superfluous(sizes, written)] == left


def test_the_checkpoints_of_epochs_and_the_bound_of_their_size(tmp_path):
    class Large(Counting):
        def __init__(self, folder, **saving):
            settings = CheckpointSettings(checkpoint_minutes=0, **saving)
            Run.__init__(self, CPU, folder, 4, 10, settings, batch_size=8)
            self.kind, self.seen = "a", []

        def state(self):
            return super().state() | {"tensor": torch.zeros(25_000)}

    Large(tmp_path / "epochs", keep_checkpoints=1, keep_every=1).run(checkpoint_every=3)
    assert saved(tmp_path / "epochs") == [4, 8, 10]  # and those of 3, 6 and 9 are gone
    Large(tmp_path / "bound", keep_checkpoints=9, keep_every=1, checkpoint_space=0.25e-3).run(checkpoint_every=1)
    assert saved(tmp_path / "bound") == [9, 10]  # of 100 kB each


def test_a_snapshot_is_a_copy_into_the_same_memory():
    weight = torch.arange(24.0).view(2, 3, 2, 2).to(memory_format=torch.channels_last)
    state = {"a": weight, "b": [weight, torch.tensor(3)], "step": 1, "pair": (torch.ones(2, dtype=torch.bfloat16), "x")}
    snapshot = Snapshot()
    first, wait = snapshot.of(state)
    wait()
    assert first["a"] is first["b"][0] and first["a"].stride() == weight.stride() and first["pair"][1] == "x"
    places = [first["a"].data_ptr(), first["b"][1].data_ptr()]
    weight.mul_(2)
    assert torch.equal(2 * first["a"], weight) and first["b"][1] == 3 and first["step"] == 1
    second, _ = snapshot.of(state | {"step": 2})
    assert torch.equal(second["a"], weight) and second["step"] == 2
    assert [second["a"].data_ptr(), second["b"][1].data_ptr()] == places
    other, _ = snapshot.of({"a": torch.zeros(5)})  # another state, as after the first step of an optimiser
    assert torch.equal(other["a"], torch.zeros(5))


def test_the_steps_go_on_while_a_state_is_written():
    written, go_on = [], threading.Event()

    def write(state):
        go_on.wait()
        written.append(state["a"].clone())
        return Path("path")

    saver, weight = Saver(write), torch.zeros(3)
    saver.start({"a": weight})
    weight += 1
    assert saver.busy and saver.result() is None and not written
    go_on.set()
    assert saver.result(wait=True) == Path("path") and torch.equal(written[0], torch.zeros(3))
    assert not saver.busy and saver.result(wait=True) is None


class Slow(Counting):
    """A run whose checkpoints are not complete before `disk` is set."""

    def __init__(self, folder, **saving):
        super().__init__(folder)
        self.saving = CheckpointSettings(keep_checkpoints=20, **saving)
        self.go_on, self.told = threading.Event(), []

    def _write(self, state):
        self.go_on.wait()
        return super()._write(state)

    def saved(self, path):
        self.told.append((self.step, checkpoint.step_of(path)))


def test_one_that_is_due_by_time_is_put_off_while_another_is_written(tmp_path):
    class Timed(Slow):
        def advance(self):
            super().advance()
            if self.step == 6:
                self.go_on.set()
            if self.step in (6, 8):
                assert self._saver._thread
                self._saver._thread.join()

    run = Timed(tmp_path, checkpoint_minutes=1e-9)
    run.run(checkpoint_every=0)
    # of step 1, complete in step 6; the next one at once
    assert saved(tmp_path)[:2] == [1, 6] and saved(tmp_path)[-1] == 10 and run.told[0] == (6, 1)


def test_one_that_is_due_at_a_step_waits_for_the_one_before(tmp_path):
    class Counted(Slow):
        def advance(self):
            super().advance()
            if self.step == 4:
                threading.Timer(0.2, self.go_on.set).start()

    run = Counted(tmp_path)
    run.run(checkpoint_every=2)
    assert saved(tmp_path) == [2, 4, 6, 8, 10] and run.told[0] == (4, 2)


def test_a_state_that_is_not_finite_is_not_saved_and_ends_the_run(tmp_path):
    class Spoilt(Counting):
        def state(self):
            return super().state() | {"weight": torch.tensor([1.0, float("nan") if self.step > 4 else 2.0])}

    with pytest.raises(TrainingError, match=r"weight is infinite or not a number after step 6, which is .* not saved"):
        Spoilt(tmp_path).run(checkpoint_every=2)
    assert saved(tmp_path) == [2, 4] and not list(tmp_path.rglob("*.partial"))


class Large(Counting):
    def state(self):
        return super().state() | {"tensor": torch.zeros(50_000)}


def test_a_full_disk_is_borne_and_what_it_kept_back_is_written_later(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("fastmoco.runs.disk.RETRY_SECONDS", 0)  # a try at every step

    class Filled(Large):
        def save_if_due(self, every):
            with files_limited_to(100_000 if 2 <= self.step < 7 else resource.RLIM_INFINITY):
                super().save_if_due(every)
                self._fetch(wait=True)

    run = Filled(tmp_path)
    run.run(checkpoint_every=2)
    assert saved(tmp_path) == [7, 8, 10] and run.seen and not list(tmp_path.rglob("*.partial"))
    tries = [record for record in caplog.records if "the checkpoint cannot be written" in record.message]
    assert len(tries) == 5 and all(record.levelname == "WARNING" for record in tries)
    named = tmp_path / "checkpoints" / "step-00000002.pt"
    assert tries[0].message == (
        f"the checkpoint cannot be written: {named}: File too large; raise the limit on the size of files (ulimit -f). "
        "Training goes on, and tries again for 30 min 00 s (--disk-patience)"
    )
    warnings = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if "cannot_write" in line]
    assert len(warnings) == 2 and '"passed": true' in warnings[1]


def test_a_stop_whose_state_cannot_be_saved_is_a_failure_that_says_what_is_lost(tmp_path):
    class Filled(Large):
        def save_if_due(self, every):
            super().save_if_due(every)
            self._fetch(wait=True)

        def save_unsaved(self, patiently=False):
            with files_limited_to(100_000):
                super().save_unsaved(patiently)

    run = Filled(tmp_path)
    run.disk = type(run.disk)(patience=0)
    with pytest.raises(TrainingError) as failed, reported(tmp_path, CPU):
        run.run(checkpoint_every=2, stop_at=5)
    said = str(failed.value)
    assert said.startswith("SIGTERM: the state after step 5 could not be saved: the checkpoint could not be written: ")
    last = tmp_path / "checkpoints/step-00000004.pt"
    assert said.endswith(f"; the steps after 4 are lost, and {last} is the last checkpoint")
    assert (failed.value.exit_code, failed.value.stopped_by, read(tmp_path)["state"]) == (1, 0, "failed")


class Owing(Large):
    """Begins with an evaluation that the last start owed; the disk is full then."""

    def go_on(self):
        assert self.resume()
        with self.opened({}):
            with files_limited_to(100_000):
                self.save_once_more()
                self._fetch(wait=True)
            for batch in self.batches(lambda epoch, first: iter([(epoch, place) for place in range(first, 4)])):
                self.seen.append(batch)
                self.advance()
                self.save_if_due(2)


def test_a_run_that_owes_an_evaluation_bears_a_full_disk_too(tmp_path, caplog):
    with pytest.raises(Stopped):
        Large(tmp_path).run(checkpoint_every=20, stop_at=5)
    run = Owing(tmp_path)
    run.go_on()
    assert run.seen == ALL and saved(tmp_path) == [5, 6, 8, 10]
    assert "the checkpoint cannot be written" in caplog.text
    # after the last step nothing is left but to write it
    run = Owing(tmp_path)
    run.disk = type(run.disk)(patience=0)
    with pytest.raises(DiskError, match="the checkpoint could not be written"):
        run.go_on()
    assert "the evaluation of that step is lost, and" in caplog.text


def test_at_the_end_rank_0_tries_no_longer_than_the_others_wait(tmp_path, monkeypatch):
    run, now = Large(tmp_path), 0.0
    run.here = World(0, 2, CPU.device, timeout=timedelta(minutes=10))

    def sleep(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr("fastmoco.runs.disk.time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    with files_limited_to(100_000), pytest.raises(DiskError, match="could not be written for 5 min 00 s: "):
        run.step = 10
        run.save_unsaved(patiently=True)


@pytest.mark.parametrize("full_from", [4, 10])
def test_a_disk_that_stays_full_ends_the_run_in_order(tmp_path, full_from, monkeypatch):
    class Filled(Large):
        def save_if_due(self, every):
            with files_limited_to(100_000 if self.step >= full_from else resource.RLIM_INFINITY):
                super().save_if_due(every)
                self._fetch(wait=True)

    run = Filled(tmp_path)
    run.disk = type(run.disk)(patience=0)
    with pytest.raises(
        DiskError, match=r"the checkpoint could not be written: .*File too large; .*, then run the same"
    ):
        run.run(checkpoint_every=2)
    assert DiskError.exit_code == 1 and saved(tmp_path) == [2, 4, 6, 8][: 1 if full_from == 4 else 4]
    assert not list(tmp_path.rglob("*.partial"))
    again = Large(tmp_path)
    assert again.run(checkpoint_every=2) and len(again.seen) == 10


def test_a_run_folder_that_is_gone_is_not_made_anew(tmp_path):
    class Gone(Counting):
        def save_if_due(self, every):
            if self.step == 4:
                self.folder.rename(tmp_path / "moved")
            super().save_if_due(every)
            self._fetch(wait=True)

    run = Gone(tmp_path / "run")
    run.disk = type(run.disk)(patience=0)
    with pytest.raises(DiskError, match="run/checkpoints: No such file or directory"):
        run.run(checkpoint_every=2)
    assert not (tmp_path / "run").exists() and saved(tmp_path / "moved") == [2]
