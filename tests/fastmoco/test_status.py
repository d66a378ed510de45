"""RUN/status.json and the warnings of a run."""

from __future__ import annotations

import json

import pytest

from fastmoco.runs.errors import Stopped
from fastmoco.runs.folder import Wanted, run_folder
from fastmoco.runs.warnings import passed, warn
from tests.fastmoco.test_run import CPU, Counting
from tests.support.runs import metrics


def status(folder):
    return json.loads((folder / "status.json").read_text())


def run(folder, act=lambda run: None):
    """Run ten steps in a run folder; `act` is called before each checkpoint."""

    class Acting(Counting):
        def save_if_due(self, every):
            act(self)
            super().save_if_due(every)

    with run_folder(folder, CPU, Wanted("count", 10, lambda *_: None)):
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


def test_an_unwritable_status_ends_no_run(tmp_path, caplog):
    (tmp_path / "status.json").mkdir()
    run(tmp_path)
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
    with pytest.raises(ZeroDivisionError), run_folder(tmp_path / "b", CPU, Wanted("count", 10, lambda *_: None)):
        raise ZeroDivisionError
    assert list((tmp_path / "b").iterdir()) == []
