"""Records of a run: whole lines alone, cut back to a step, and a disk that takes none."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastmoco.runs.appended import Appended, rewind
from fastmoco.runs.disk import Disk, DiskError
from fastmoco.runs.lock import only_writer
from fastmoco.runs.log import RunLog
from shards.progress import Pace
from shards.storage.files import partial
from tests.fastmoco.test_run import CPU
from tests.support.limits import files_limited_to

LINES = [json.dumps({"step": step, "loss": step / 2}).encode() + b"\n" for step in (1, 2, 2, 4)]


def test_half_a_record_is_taken_back_and_written_later(tmp_path):
    records = Appended(tmp_path / "a.jsonl")
    records.add(b"first\n")
    records.flush()
    with files_limited_to(10):
        for record in (b"second\n", b"third\n"):
            records.add(record)
            with pytest.raises(OSError, match="File too large") as failed:
                records.flush()
            assert failed.value.filename == str(records.path)
            assert records.path.read_bytes() == b"first\n"  # a write of four bytes went through
        assert records.unwritten == 2
    records.flush()
    assert records.path.read_bytes() == b"first\nsecond\nthird\n" and records.unwritten == 0
    records.path.unlink()
    records.add(b"fourth\n")
    records.flush()
    assert records.path.read_bytes() == b"fourth\n"


def test_a_full_device_is_named():
    records = Appended(Path("/dev/full"))
    records.add(b"line\n")
    with pytest.raises(OSError, match="No space left on device") as failed:
        records.flush()
    assert failed.value.filename == "/dev/full"


@pytest.mark.parametrize(("step", "kept"), [(0, 0), (1, 1), (2, 3), (3, 3), (9, 4)])
def test_lines_of_later_steps_are_dropped_also_on_a_full_disk(tmp_path, step, kept):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(LINES))
    with files_limited_to(0):
        rewind(path, step)
    assert path.read_bytes() == b"".join(LINES[:kept])


def test_a_line_that_is_not_whole_is_dropped(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(LINES)[:-5])
    rewind(path, 9)
    assert path.read_bytes() == b"".join(LINES[:3])
    assert caplog.messages == [f"dropped line 4 of {path}: it is incomplete, as after a crash"]


def fill(path, content):
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("content", "line", "kept"),
    [
        (None, None, []),
        (bytes(range(256)) * 9, 1, []),
        (b"\0" * 3_000_000, 1, []),
        (b"[" * 100_000 + b"\n" + LINES[0], 1, LINES[:1]),
        (LINES[0] + b"[1, 2]\n" + LINES[1], 2, LINES[:2]),
        (LINES[0] + b'{"step": "1"}\n', 2, LINES[:1]),
        (LINES[0] + b'{"step": true}\n' + LINES[3], 2, LINES[:1]),
        (LINES[0] + b"7\n", 2, LINES[:1]),
    ],
    ids=["folder", "binary", "zeros", "nested", "list", "text", "bool", "number"],
)
def test_what_is_no_record_is_kept_aside_and_a_new_file_begun(tmp_path, caplog, content, line, kept):
    path = tmp_path / "metrics.jsonl"
    fill(path, content)
    rewind(path, 2)
    assert (path.read_bytes() if path.exists() else b"") == b"".join(kept)
    aside = tmp_path / "metrics.jsonl.damaged-1"
    assert aside.is_dir() if content is None else aside.read_bytes() == content
    reason = "it is no file" if line is None else f"line {line} is no record of a step"
    assert caplog.messages == [
        f"{path} is damaged: {reason}; it is kept as metrics.jsonl.damaged-1, and a new one begun"
    ]
    path.mkdir(exist_ok=True) if content is None else path.write_bytes(b"x\n")
    rewind(path, 2)
    assert (tmp_path / "metrics.jsonl.damaged-2").exists()


def test_a_link_where_the_records_should_be_is_not_written_through(tmp_path):
    (tmp_path / "theirs").write_bytes(b"theirs\n")
    (tmp_path / "metrics.jsonl").symlink_to("theirs")
    rewind(tmp_path / "metrics.jsonl", 0)
    assert (tmp_path / "theirs").read_bytes() == b"theirs\n" and not (tmp_path / "metrics.jsonl").exists()


def test_no_figure_is_lost_while_a_disk_is_full(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("fastmoco.runs.disk.RETRY_SECONDS", 0)
    threads = set(threading.enumerate())
    with files_limited_to(0):
        log = RunLog(tmp_path, {"lr": 1.0}, 0, Pace(3))
        for step in (1, 2):
            log.write({"step": step, "epoch": 1.0, "loss": step / 2}, "a line")
        assert set(threading.enumerate()) <= threads
        # the two of metrics.jsonl, of TensorBoard and config.json when it was opened
        for name, tries in (("metrics.jsonl", 2), ("tensorboard", 3), ("config.json", 3)):
            said = [message for message in caplog.messages if message.startswith(f"{name} cannot be written: ")]
            assert len(said) == tries and "File too large" in said[0], name
    log.write({"step": 3, "epoch": 1.0, "loss": 1.5}, "a line")
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(each.step, each.value) for each in board.Scalars("train/loss")] == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert json.loads((tmp_path / "config.json").read_text()) == {"lr": 1.0}
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(("resumed", "kept"), [(0, [50.0]), (2, [40.0, 45.0, 50.0])])
def test_a_start_from_nothing_keeps_no_record_of_an_earlier_one(tmp_path, resumed, kept):
    """A run that is killed before its first checkpoint evaluates step 0 once more."""
    log = RunLog(tmp_path, {}, 0, Pace(3))
    for step, accuracy in ((0, 40.0), (2, 45.0), (3, 60.0)):
        log.write({"step": step, "epoch": 1.0, "knn_top1": accuracy}, "a line")
    log.close()
    log = RunLog(tmp_path, {}, resumed, Pace(3))
    log.write({"step": resumed, "epoch": 1.0, "knn_top1": 50.0}, "a line")
    log.close()
    lines = [json.loads(line)["knn_top1"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert lines == kept == [each.value for each in board.Scalars("probe/knn_top1")]


def test_records_that_stay_unwritten_end_the_run(tmp_path):
    disk = Disk(patience=0)
    disk.check()
    with files_limited_to(0):
        RunLog(tmp_path, {}, 0, Pace(3), disk)
    with pytest.raises(DiskError, match=r"config\.json could not be written: .*config\.json: File too large"):
        disk.check()


def test_the_wait_for_a_full_disk_is_one_however_many_files_fail(monkeypatch):
    now, slept = 0.0, []

    def sleep(seconds):
        nonlocal now
        slept.append(seconds)
        now += seconds

    monkeypatch.setattr("fastmoco.runs.disk.time.monotonic", lambda: now)
    monkeypatch.setattr("fastmoco.runs.disk.time.sleep", sleep)
    disk = Disk(patience=1.5)
    for what in ("metrics.jsonl", "tensorboard", "the checkpoint"):
        disk.failed(what, OSError(28, "No space left on device"))
    disk.wait()
    assert slept == [60.0]
    disk.wait()
    assert slept == [60.0, 30.0]  # the patience ends
    with pytest.raises(DiskError, match=r"metrics\.jsonl could not be written for 1 min 30 s"):
        disk.wait()


def test_a_start_removes_what_killed_runs_left_half_written(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    theirs = [
        tmp_path / "metrics.jsonl.1a-0123abcd.partial",
        tmp_path / "checkpoints/step-00000001.pt.ff-00ff00ff.partial",
    ]
    ours, other = partial(tmp_path / "config.json"), tmp_path / "notes.partial.txt"
    (tmp_path / "checkpoints").mkdir()
    for path in (*theirs, ours, other):
        path.write_bytes(b"x")
    with only_writer(tmp_path, CPU):
        assert ours.exists() and other.exists() and not any(path.exists() for path in theirs)
    assert len([message for message in caplog.messages if "a run that was killed had not finished" in message]) == 2


def test_the_lock_holds_on_a_full_disk(tmp_path):
    with files_limited_to(0), only_writer(tmp_path, CPU):
        assert (tmp_path / "lock").read_bytes() == b""
