"""The second place of a run's checkpoints, from which another machine continues."""

from __future__ import annotations

import os
import shutil
import signal
import threading

import pytest

from fastmoco.checkpoints import checkpoint
from fastmoco.checkpoints.checkpoint import CheckpointError
from fastmoco.flags import ConfigError
from fastmoco.runs.errors import Stopped
from fastmoco.settings import CheckpointSettings
from shards.storage.store import open_store
from tests.fastmoco.test_run import ALL, Counting, saved
from tests.support.runs import metrics


class Copied(Counting):
    def __init__(self, folder, place, kind="a", keep=2):
        super().__init__(folder, kind)
        self.saving = CheckpointSettings(keep_checkpoints=keep, checkpoint_copy=str(place))

    def save_if_due(self, every):
        super().save_if_due(every)
        self._fetch(wait=True)
        assert self._copier and self._copier.wait(60)


def copied(place):
    return [name for name in open_store(str(place)).names("checkpoints") if checkpoint.is_name(name)]


def test_another_machine_continues_from_a_bucket(tmp_path, s3):
    Counting(tmp_path / "whole").run(checkpoint_every=2)
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        Copied(folder, s3).run(checkpoint_every=2, stop_at=7)
    assert copied(s3) == ["step-00000006.pt", "step-00000007.pt"]  # the last one by the stop
    shutil.rmtree(folder)  # the machine is lost
    again = Copied(folder, s3)
    assert again.run(checkpoint_every=2) and again.seen == ALL and saved(folder) == [8, 10]
    assert metrics(folder) == metrics(tmp_path / "whole")
    assert copied(s3)[-1] == "step-00000010.pt" and not open_store(s3).exists("status.json")
    # on a third machine the finished run is known
    assert Copied(tmp_path / "third", s3).run(checkpoint_every=2)
    with pytest.raises(
        CheckpointError, match=rf"^{s3}/checkpoints/step-00000010\.pt is of another count: kind was 'a'"
    ):
        Copied(tmp_path / "other", s3, "b").run(checkpoint_every=2)
    assert not list((tmp_path / "other").rglob("*.pt*"))


@pytest.fixture
def run_and_copy(tmp_path):
    """A run folder and its copy, both with the checkpoints of steps 8 and 10."""
    Copied(tmp_path / "run", tmp_path / "copy").run(checkpoint_every=2)
    assert saved(tmp_path / "run") == [8, 10]
    return tmp_path / "run", tmp_path / "copy"


def test_a_damaged_checkpoint_of_the_copy_is_left_out(run_and_copy, caplog):
    folder, copy = run_and_copy
    newest = copy / "checkpoints/step-00000010.pt"
    newest.write_bytes(newest.read_bytes()[:-300])
    shutil.rmtree(folder)
    again = Copied(folder, copy)
    assert again.run(checkpoint_every=2) and again.seen == ALL
    assert any(str(newest) in message and "cannot be read" in message for message in caplog.messages)


def test_an_older_machine_takes_the_newer_checkpoint_of_the_copy(tmp_path):
    mine, theirs, copy = (tmp_path / name for name in ("mine", "theirs", "copy"))
    for folder, stop_at in ((mine, 3), (theirs, 7)):
        with pytest.raises(Stopped):
            Copied(folder, copy).run(checkpoint_every=20, stop_at=stop_at)
    assert saved(mine) == [3] and saved(theirs)[-1] == 7
    run = Copied(mine, copy)
    assert run.run(checkpoint_every=20) and run.seen == ALL and saved(mine) == [7, 10]


def test_steps_that_the_ranks_do_not_agree_on_are_deleted_from_the_copy(run_and_copy):
    folder, copy = run_and_copy
    run = Copied(folder, copy)
    run.agreed_step = 9
    assert "1 later checkpoint (" in run.set_unsure_aside()
    assert copied(copy) == ["step-00000008.pt"] and saved(folder) == [8]
    again = Copied(folder, copy)
    assert again.run(checkpoint_every=2) and again.seen == ALL and copied(copy)[-1] == "step-00000010.pt"


@pytest.mark.parametrize("back", ["before the restart", "after it"])
def test_such_steps_are_deleted_once_a_copy_that_was_away_is_back(run_and_copy, back, monkeypatch):
    monkeypatch.setattr("fastmoco.runs.copier.RETRY_SECONDS", 0)
    folder, copy = run_and_copy
    away = copy.rename(copy.with_name("away"))
    copy.write_text("in the way")
    unsure = (folder / "checkpoints/step-00000010.pt").read_bytes()
    run = Copied(folder, copy)
    run.agreed_step = 9
    assert f"delete those in {copy}, too, which could not be done" in run.set_unsure_aside()

    def come_back():
        # in one step: between two, a copy that is tried again would make a folder of that name
        copy.with_name("link").symlink_to(away)
        copy.with_name("link").replace(copy)

    class Other(Copied):
        def save_if_due(self, every):
            if self.step == 9 and back == "after it":
                come_back()
            super().save_if_due(every)
            assert copied(copy) == [f"step-{step:08d}.pt" for step in ((8, 9) if self.step == 9 else (9, 10))]

        def state(self):
            return super().state() | {"kind": {"kind": "a", "other": 1}}

    if back == "before the restart":
        come_back()
    again = Other(folder, copy)
    assert again.run(checkpoint_every=1) and again.seen == ALL
    assert (copy / "checkpoints/step-00000010.pt").read_bytes() == (
        folder / "checkpoints/step-00000010.pt"
    ).read_bytes()
    assert (copy / "checkpoints/step-00000010.pt").read_bytes() != unsure


def test_copies_that_cannot_be_used(run_and_copy, tmp_path):
    folder, copy = run_and_copy
    with pytest.raises(ConfigError, match=r"--checkpoint-copy .*/run is the run folder itself; give another place"):
        Copied(folder, folder).run(checkpoint_every=2)
    Counting(tmp_path / "mine").run(checkpoint_every=4)
    with pytest.raises(ConfigError, match=r"--checkpoint-copy .*/copy holds checkpoints of another run; give an empty"):
        Copied(tmp_path / "mine", copy).run(checkpoint_every=2)
    new = Copied(tmp_path / "new", copy)
    new.refuses_copy = "--resume none"
    with pytest.raises(ConfigError, match=r"^--resume none, but --checkpoint-copy .*/copy holds checkpoints; give an"):
        new.run(checkpoint_every=2)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"--checkpoint-copy .*/file/copy cannot be used: .*Not a directory"):
        Copied(tmp_path / "new", tmp_path / "file" / "copy").run(checkpoint_every=2)


def test_a_copy_that_fails_is_a_warning_and_is_made_later(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("fastmoco.runs.copier.RETRY_SECONDS", 0)
    copy = tmp_path / "copy"

    class Failing(Copied):
        def save_if_due(self, every):
            if self.step == 2:  # a folder that cannot be written, also by root
                shutil.rmtree(copy)
                copy.write_text("in the way")
            Counting.save_if_due(self, every)
            if self.step == 6:
                self._fetch(wait=True)
                while "is not copied to" not in caplog.text:
                    threading.Event().wait(0.01)
                copy.unlink()

    assert not Failing(tmp_path / "run", copy).run(checkpoint_every=2)
    assert copied(copy)[-1] == "step-00000010.pt" and (copy / "metrics.jsonl").exists()
    said = [message for message in caplog.messages if "is not copied to" in message]
    assert len(said) == 1 and "Not a directory" in said[0] and "it is tried again" in said[0]
    end = {"warning": "checkpoint_copy", "passed": True}  # written by the step after: the last line, or one before it
    assert [end.items() <= record.items() for record in metrics(tmp_path / "run")].count(True) == 1


@pytest.mark.parametrize("stopped", [False, True])
def test_at_the_end_the_ranks_meet_while_they_wait_for_the_copy(tmp_path, caplog, monkeypatch, stopped):
    """A rank that waited for rank 0 alone, which waits for half an hour, would fail after --rank-timeout."""
    folder, copy, meetings = tmp_path / "run", tmp_path / "copy", []

    class Away(Copied):
        save_if_due = Counting.save_if_due

    def meet(here, act):
        meetings.append(act())
        if len(meetings) == 3 and stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        elif len(meetings) == 3:
            (copy / "config.json").rmdir()
        return meetings[-1]

    (copy / "config.json").mkdir(parents=True)  # in the way
    for name, value in (("from_main", meet), ("_MEET_EVERY", 0.01), ("_STOP_COPY_SECONDS", 0)):
        monkeypatch.setattr(f"fastmoco.runs.saved.{name}", value)
    Away(folder, copy).run(checkpoint_every=20)
    assert meetings[:3] == [False, False, False] and meetings[-1] and saved(folder) == [10]
    assert copied(copy) == ["step-00000010.pt"] * (not stopped)
    assert (f"the newest checkpoint is not in {copy}" in caplog.text) is stopped
