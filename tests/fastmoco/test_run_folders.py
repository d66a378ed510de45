"""Run folders: one writer at a time, names of their own, and which earlier run a command continues."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastmoco.checkpoints import saving
from fastmoco.ranks.world import World
from fastmoco.recipes import recipe
from fastmoco.runs import lock
from fastmoco.runs.errors import FolderInUse
from fastmoco.runs.folder import Wanted, mark_latest, run_folder
from fastmoco.runs.lock import only_writer
from fastmoco.trainer.data import Data
from fastmoco.trainer.loop import wanted
from fastmoco.trainer.resume import compare
from shards.storage.locking import Held, locked

SCRIPTS = Path(__file__).parent / "scripts"
CPU = World(0, 1, torch.device("cpu"))
DIGEST = "a" * 64


@pytest.fixture
def at_work(tmp_path, monkeypatch):
    """A working folder of the user's own."""
    monkeypatch.chdir(tmp_path)
    for variable in ("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def begin(config, digest=DIGEST, total=10):
    """The folder of a run with these settings."""
    wanted = Wanted(
        f"{config.recipe}-{config.arch}",
        total,
        lambda folder, recorded: compare(folder, recorded, config, 96, digest),
        "--resume none",
        earlier=config.resume != "none",
    )
    with run_folder(config.out, CPU, wanted) as folder:
        (folder / "config.json").write_text(json.dumps(config.to_dict() | {"environment": {"torch": "2"}}))
    return folder


def save(folder, step, digest=DIGEST):
    saving.save(folder / "checkpoints", {"progress": {"step": step}, "data": {"digest": digest}}, 3)


@pytest.mark.parametrize("made", ["runs/new", "there/new", "there"])
def test_a_run_that_ends_before_it_writes_leaves_no_folder_that_it_made(at_work, made):
    (at_work / "there").mkdir()
    before, out = set(at_work.rglob("*")), at_work / made
    with pytest.raises(ValueError), run_folder(out, CPU, Wanted("run", 1, lambda *_: None)):
        assert out.is_dir()
        raise ValueError
    assert set(at_work.rglob("*")) == before
    with pytest.raises(ValueError), run_folder(out, CPU, Wanted("run", 1, lambda *_: None)):
        (out / "views.png").touch()
        raise ValueError
    assert (out / "views.png").exists()


def test_a_second_process_is_refused_and_a_dead_one_leaves_no_lock(at_work):
    """The second descriptor of the file stands for a second process: the kernel's lock belongs to the descriptor."""
    run = at_work / "run"
    run.mkdir()
    (run / "lock").write_text("process 1 on a host that died\n")
    with only_writer(run, CPU):
        about = f"process {os.getpid()} on {os.uname().nodename} since \\d{{4}}-\\d\\d-\\d\\d \\d\\d:\\d\\d:\\d\\d"
        assert re.fullmatch(about + "\n", (run / "lock").read_text())
        with pytest.raises(Held, match=f"^{about}$"), locked(run / "lock", "another"):
            pass
        with only_writer(run, CPU):  # nested: the demo trains in its own folder
            pass
        with pytest.raises(Held), locked(run / "lock", "another"):
            pass
    assert list(run.iterdir()) == []
    with locked(run / "lock", "process 7 on HOST since then"):
        message = f"^{run} is being written by process 7 on HOST since then; wait, stop it, or give another --out$"
        with pytest.raises(FolderInUse, match=message), only_writer(run, CPU):
            pass


@pytest.mark.parametrize(
    ("variable", "dies_after", "patience"),
    [("TORCHELASTIC_RESTART_COUNT", 30, lock.PATIENCE), ("TORCHELASTIC_RUN_ID", 10, lock.AGENT_PATIENCE)],
)
def test_a_restarted_run_waits_for_the_process_before_it(at_work, monkeypatch, caplog, variable, dies_after, patience):
    """torchrun and SLURM may start a run again while its processes are still dying, or others start torchrun again."""
    monkeypatch.setenv(variable, "1")
    before = locked(at_work / "lock", "process 7 on HOST")
    now = 0.0

    def sleep(seconds):
        nonlocal now
        now += seconds
        if now > dies_after and before is not None:
            before.__exit__(None, None, None)

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    before.__enter__()
    with caplog.at_level("INFO"), only_writer(at_work, CPU):
        assert dies_after < now < dies_after + 1
    assert [record.getMessage() for record in caplog.records] == [f"waiting for process 7 on HOST to leave {at_work}"]
    with (
        locked(at_work / "lock", "process 8 on HOST"),
        pytest.raises(FolderInUse, match="process 8"),
        only_writer(at_work, CPU),
    ):
        pass
    assert patience < now - dies_after < patience + 2


def test_a_file_system_without_locks_is_named_once(tmp_path, command):
    done = command(sys.executable, SCRIPTS / "no_locks.py", tmp_path / "run")
    if done.stdout == "cannot\n":
        pytest.skip("this system cannot let a system call fail")
    assert done.stdout == "['lock']\n"
    assert done.stderr.count(f"the file system of {tmp_path}/run has no locks: start no second run that writes") == 1


@pytest.mark.distributed
def test_rank_0_chooses_the_folder_and_all_ranks_are_refused(tmp_path, torchrun):
    (tmp_path / "used").mkdir()
    with locked(tmp_path / "used" / "lock", "process 7 on HOST since then"):
        torchrun(2, SCRIPTS / "folders.py", tmp_path / "used")
    first, second = ((tmp_path / f"got-{rank}").read_text().splitlines() for rank in (0, 1))
    assert first == second and re.fullmatch(r"runs/moco-\d{8}-\d{6}", first[0])
    assert f"{tmp_path}/used is being written by process 7 on HOST since then; wait" in first[1]
    assert sorted(path.name for path in (tmp_path / first[0]).iterdir()) == ["rank-0", "rank-1", "status.json"]


def test_default_folders_have_names_of_their_own(at_work, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda form: "20261128-193000")
    config = replace(recipe("moco-v2"), resume="none")
    names = [str(begin(config)) for _ in range(3)]
    first = "runs/moco-v2-resnet50-20261128-193000"
    assert names == [first, f"{first}-2", f"{first}-3"]
    with pytest.raises(ZeroDivisionError), run_folder(None, CPU, Wanted("x", 1, lambda *_: None)) as empty:
        raise ZeroDivisionError  # a run that fails before it has written anything
    assert not empty.exists()


def test_the_same_settings_take_the_folder_of_their_unfinished_run(at_work, caplog):
    config = recipe("moco-v2")
    caplog.set_level("INFO")
    first = begin(config)
    assert begin(config) == first  # killed before its first checkpoint
    save(first, 4)
    assert begin(replace(config, log_every=1, threads=3, knn_k=5)) == first
    assert f"{first} is an unfinished run of the same settings; for a new run, give --resume none" in caplog.text
    save(first, 10)
    assert begin(config) == first  # finished, which the run says
    second = begin(replace(config, resume="none"))
    assert second != first and begin(config) == second
    save(second, 3)
    third = begin(replace(config, resume="none"))
    os.utime(second / "config.json", (2e9, 2e9))
    assert begin(config) == second
    assert f"{second} is an unfinished run of the same settings, the newest of 2" in caplog.text
    assert third.exists()


def test_other_settings_begin_a_new_run_and_name_the_one_that_could_continue(at_work, caplog):
    caplog.set_level("INFO")
    config = recipe("moco-v2")
    first = begin(config)
    save(first, 4)
    other = begin(replace(config, lr=0.1, precision="bf16"))
    assert other != first
    differs = f"new run in {other}; {first} differs (--lr was not given, now 0.1; --precision was 'auto', now 'bf16')"
    assert f"{differs}: to continue it, give --out {first}" in caplog.text
    for change in ({"arch": "resnet18"}, {"seed": 1}, {"shards": Path("set")}, {"resume": "a.pt"}):
        digest = "b" * 64 if "shards" in change else DIGEST
        caplog.clear()
        assert begin(replace(config, **change), digest) not in (first, other)
        assert "to continue it" not in caplog.text
    assert begin(replace(config, shards=Path("moved"))) == first  # the images are the same
    # runs of other commands, and files that are no run's, are left alone
    for name, text in (("linear", '{"probe": {}}'), ("mine", "[]"), ("broken", "{")):
        (at_work / "runs" / name).mkdir()
        (at_work / "runs" / name / "config.json").write_text(text)
    assert begin(config) == first


def test_a_restart_continues_what_resume_none_began(at_work, monkeypatch):
    config, data = replace(recipe("moco-v2"), resume="none", steps=10), Data("shards", 512, DIGEST, lambda: None)
    assert not wanted(config, data).earlier
    for variable in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"):
        monkeypatch.setenv(variable, "1")
        assert wanted(config, data).earlier
        monkeypatch.setenv(variable, "0")
    assert not wanted(config, data).earlier


def test_latest_is_a_link_to_the_training_that_was_started_last(at_work):
    folders = [begin(recipe(name)) for name in ("moco-v1", "moco-v2")]
    for folder in (*folders, Path("runs/latest")):
        mark_latest(folder)
        assert (at_work / "runs" / "latest").resolve() == (at_work / folder).resolve()
    mark_latest(at_work / "elsewhere")
    assert os.readlink(at_work / "runs" / "latest") == folders[1].name
