from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastmoco.checkpoints import checkpoint
from fastmoco.report import rows
from tests.support.runs import metrics

SCRIPT = Path(__file__).parent / "scripts" / "train_and_record.py"
SMALL = ["--recipe", "demo", "--image-size", "32", "--batch-size", "16", "--queue-size", "40", "--log-every", "1"]


def flags(shard_sets, run, *more):
    return [*SMALL, "--shards", shard_sets / "train", "--out", run, "--threads", "2", *more]


def losses(run):
    records = metrics(run)
    return {r["step"]: (r["loss"], r["accuracy"], r["spread"]) for r in records if "loss" in r}


def assert_equal_states(a, b):
    """Bit for bit, through nested containers."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal_states(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal_states(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def final_state(run):
    state = checkpoint.load(checkpoint.found(run / "checkpoints")[0])
    return {k: v for k, v in state.items() if k not in ("config", "sha256")}  # which covers the config, too


@pytest.fixture(scope="module")
def whole_run(shard_sets, tmp_path_factory):
    """An uninterrupted run of ten steps (six an epoch) with kNN probes."""
    run = tmp_path_factory.mktemp("whole") / "run"
    more = ["--steps", "10", "--knn-every", "1", "--knn-val", shard_sets / "val", "--checkpoint-every", "3"]
    command = [sys.executable, "-m", "fastmoco.train", *flags(shard_sets, run, *more)]
    # results depend on torch's number of threads: use that of the runs compared with this one
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300, env=env)
    assert result.returncode == 0, result.stderr
    return run, result.stderr


def test_the_run_folder_holds_what_is_promised(whole_run):
    run, said = whole_run
    records = metrics(run)
    steps = [r for r in records if "loss" in r]
    assert [r["step"] for r in steps] == list(range(1, 11))
    assert set(steps[0]) >= {"step", "epoch", "loss", "accuracy", "lr", "imgs_per_sec", "data_wait"}
    assert [r["step"] for r in records if "knn_top1" in r] == [0, 6, 10]
    assert all(0 <= r["data_wait"] <= 1 for r in steps)
    recorded = json.loads((run / "config.json").read_text())
    assert recorded["queue_size"] == 40
    made = recorded["environment"]
    assert made["command"].startswith("python -m fastmoco.train --recipe demo") and made["date"] and made["packages"]
    assert (made["ranks"], made["steps_per_epoch"], made["total_steps"]) == (1, 6, 10)
    assert [p.name for p in checkpoint.found(run / "checkpoints")] == [f"step-{n:08d}.pt" for n in (10, 9, 6)]
    assert all(r["knn_images"] == 24 for r in records if "knn_top1" in r)
    assert (run / "views.png").stat().st_size > 1000
    assert "pipeline torch" in said and "chance is a loss of ln(K+1) = 3.714" in said


def test_each_log_line_has_the_step_of_all_and_the_time_left(whole_run):
    run, stderr = whole_run
    lines = re.findall(r"INFO step (\d+)/10  (.*?)  epoch", stderr)
    assert [int(step) for step, _ in lines] == [record["step"] for record in metrics(run)]
    assert {left for _, left in lines[:4]} == {"time left not known yet"}  # steps that compile are not measured
    assert all(re.fullmatch(r"(\d+ min )?\d+ s left", left) for _, left in lines[6:]) and lines[-1][1] == "0 s left"


def test_tensorboard_has_the_figures_in_groups_the_settings_and_the_views(whole_run):
    run, _ = whole_run
    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0}).Reload()
    train = {f"train/{name}" for name in ("loss", "accuracy", "spread", "grad_norm", "lr", "queue_fill")}
    assert set(board.Tags()["scalars"]) == train | {"speed/imgs_per_sec", "speed/data_wait", "probe/knn_top1"}
    steps = [r for r in metrics(run) if "loss" in r]
    curve = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert curve == [(r["step"], pytest.approx(r["loss"], rel=1e-6)) for r in steps]
    assert [event.step for event in board.Scalars("probe/knn_top1")] == [0, 6, 10]
    (text,) = board.Tensors("config/text_summary")
    assert b'"queue_size": 40' in text.tensor_proto.string_val[0]
    assert "_hparams_/session_start_info" in board.summary_metadata
    (views,) = board.Images("views")
    (neighbours,) = board.Images("neighbours")
    for shown, name in ((views, "views.png"), (neighbours, "neighbours.png")):
        with Image.open(run / name) as picture:
            assert (shown.width, shown.height) == picture.size
    assert neighbours.step == 10 and (neighbours.width, neighbours.height) == (728, 320)  # four classes


def test_the_neighbours_of_a_run_are_recorded_and_computed_again_on_request(whole_run, tmp_path, in_process):
    run = tmp_path / "run"
    shutil.copytree(whole_run[0], run)
    step, recorded = rows.load(run)
    assert step == 10 and len(recorded) == 4 and {len(row.neighbours) for row in recorded} == {8}
    for row in recorded:
        assert list(row.right) == [near.name == row.query.name for near in row.neighbours]
    (run / "neighbours.json").unlink()
    in_process("-m", "fastmoco.report.__main__", "run", "--neighbours")
    assert rows.load(run) == (step, recorded)  # the same encoder and sets
    html = (run / "report.html").read_text()
    assert "<h2>Nearest neighbours</h2>" in html and html.count("data:image/jpeg;base64,") == 4 * 9


def test_a_run_is_repeated_bit_for_bit_from_its_config_json(whole_run, tmp_path, command):
    run = tmp_path / "again"
    command(sys.executable, "-m", "fastmoco.train", "--config", whole_run[0] / "config.json", "--out", run)
    assert losses(run) == losses(whole_run[0])
    settings = [json.loads((folder / "config.json").read_text()) for folder in (run, whole_run[0])]
    for each in settings:
        del each["environment"], each["out"]
    assert settings[0] == settings[1]


@pytest.mark.slow
def test_a_killed_run_in_the_order_sharded_continues_bit_for_bit(shard_sets, tmp_path, command):
    recorded, more = {}, ["--steps", "10", "--checkpoint-every", "4", "--order", "sharded", "--order-window", "10"]
    for name in ("whole", "cut"):
        arguments = flags(shard_sets, tmp_path / name, *more)
        if name == "cut":
            command(sys.executable, SCRIPT, *arguments, env={"KILL_AT": "8"}, check=False)
            assert not (tmp_path / "cut/checkpoints/step-00000010.pt").exists()
        (tmp_path / f"recorded-{name}").mkdir()
        command(sys.executable, SCRIPT, *arguments, env={"RECORD": str(tmp_path / f"recorded-{name}")})
        recorded[name] = torch.load(tmp_path / f"recorded-{name}" / "rank-0.pt", weights_only=True)["ids"]
    assert recorded["cut"] == recorded["whole"][8:]
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert_equal_states(final_state(tmp_path / "cut"), final_state(tmp_path / "whole"))


@pytest.mark.slow
def test_a_killed_run_with_a_memory_bank_continues_bit_for_bit(shard_sets, tmp_path, command):
    more = ["--steps", "8", "--checkpoint-every", "3", "--mechanism", "memory-bank"]
    command(sys.executable, "-m", "fastmoco.train", *flags(shard_sets, tmp_path / "whole", *more))
    arguments = flags(shard_sets, tmp_path / "cut", *more)
    command(sys.executable, SCRIPT, *arguments, env={"KILL_AT": "6"}, check=False)
    assert not (tmp_path / "cut/checkpoints/step-00000008.pt").exists()
    command(sys.executable, SCRIPT, *arguments)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert_equal_states(final_state(tmp_path / "cut"), final_state(tmp_path / "whole"))


@pytest.mark.parametrize(("kill_at", "lost"), [(0, False), (5, False), (8, True)])
def test_a_killed_run_continues_bit_for_bit(whole_run, shard_sets, tmp_path, command, kill_at, lost):
    """Also on another machine, from the copy of its checkpoints."""
    run = tmp_path / "run"
    arguments = flags(shard_sets, run, "--steps", "10", "--checkpoint-every", "3", "--checkpoint-copy", tmp_path / "c")
    killed = command(sys.executable, SCRIPT, *arguments, env={"KILL_AT": str(kill_at)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (run / "lock").exists()  # the file; the kernel has freed the lock
    assert not (run / "checkpoints" / "step-00000010.pt").exists()
    if lost:
        shutil.rmtree(run)
    command(sys.executable, SCRIPT, *arguments)
    assert losses(run) == losses(whole_run[0])
    assert (tmp_path / "c/checkpoints/step-00000010.pt").read_bytes() == checkpoint.found(run / "checkpoints")[
        0
    ].read_bytes()
    assert_equal_states(final_state(run), final_state(whole_run[0]))


def test_a_finished_run_says_so_and_a_longer_one_continues(whole_run, shard_sets, tmp_path, command):
    run = tmp_path / "run"
    command(sys.executable, "-m", "fastmoco.train", *flags(shard_sets, run, "--steps", "2"))
    again = command(sys.executable, "-m", "fastmoco.train", *flags(shard_sets, run, "--steps", "2"))
    assert "is finished: 2 of 2 steps are done; for a new run, give another --out" in again.stderr
    changed = command(
        *(sys.executable, "-m", "fastmoco.train"),
        *flags(shard_sets, run, "--steps", "2", "--precision", "bf16", "--milestones", "0.5", "--log-every", "7"),
        check=False,
    )
    assert changed.returncode == 2
    assert (
        f"{run} is finished, with other settings: --milestones was [0.6, 0.8], now [0.5]; --precision was 'auto', "
        "now 'bf16'; 2 of 2 steps are done. To train with these settings, give another --out"
    ) in changed.stderr
    refused = command(
        sys.executable, "-m", "fastmoco.train", *flags(shard_sets, run, "--steps", "3", "--resume", "none"), check=False
    )
    assert refused.returncode == 2 and "holds checkpoints; choose another --out" in refused.stderr
    other = command(
        sys.executable,
        "-m",
        "fastmoco.train",
        *flags(shard_sets, run, "--steps", "3", "--arch", "resnet18"),
        check=False,
    )
    assert other.returncode == 2 and "arch was 'resnet10', now 'resnet18'" in other.stderr
    shutil.copytree(run, tmp_path / "longer")
    longer = command(sys.executable, "-m", "fastmoco.train", *flags(shard_sets, tmp_path / "longer", "--steps", "3"))
    assert "settings changed at step 2: --steps was 2, now 3; for a new run, give another --out" in longer.stderr
    assert sorted(losses(tmp_path / "longer")) == [1, 2, 3]
    newest = run / "checkpoints" / "step-00000002.pt"
    newest.write_bytes(newest.read_bytes()[:5000])
    damaged = command(sys.executable, "-m", "fastmoco.train", *flags(shard_sets, run, "--steps", "3"), check=False)
    assert damaged.returncode == 2 and "checkpoints can be read, of 1 tried" in damaged.stderr


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_taken(whole_run, shard_sets, tmp_path, command):
    run = tmp_path / "run"
    arguments = flags(shard_sets, run, "--checkpoint-every", "2")
    command(sys.executable, "-m", "fastmoco.train", *arguments, "--steps", "10", env={"KILL_AT": "4"})
    newest = run / "checkpoints" / "step-00000010.pt"
    newest.write_bytes(newest.read_bytes()[:-7000])
    again = command(sys.executable, "-m", "fastmoco.train", *arguments, "--steps", "10")
    assert "step-00000010.pt cannot be read" in again.stderr
    assert "continuing from" in again.stderr and "8 of 10 steps are done" in again.stderr
    assert losses(run) == losses(whole_run[0])


def test_sigterm_writes_a_checkpoint_and_the_run_continues(shard_sets, tmp_path, in_process):
    run = tmp_path / "run"
    arguments = [sys.executable, "-m", "fastmoco.train", *flags(shard_sets, run, "--steps", "100000")]
    arguments += ["--log-every", "50000"]  # a stop does not wait for a log line
    process = subprocess.Popen([str(a) for a in arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    second = in_process("-m", "fastmoco.train", *flags(shard_sets, run, "--steps", "3"), check=False)
    assert second.returncode == 2
    assert f"{run} is being written by process {process.pid} on {os.uname().nodename} since " in second.stderr
    assert "; wait, stop it, or give another --out" in second.stderr
    process.terminate()
    _, said = process.communicate(timeout=300)
    assert process.returncode == 143, said
    done = checkpoint.load(checkpoint.found(run / "checkpoints")[0])["progress"]["step"]
    assert (stopped := json.loads((run / "status.json").read_text()))["state"] == "stopped"
    assert stopped["reason"] == f"SIGTERM: stopped after step {done}; the same command continues from there"
    assert f"SIGTERM: stopped after step {done}; the same command continues from there" in said
    assert not (run / "lock").exists()
    more = in_process("-m", "fastmoco.train", *flags(shard_sets, run, "--steps", str(done + 1)))
    assert f"{done} of {done + 1} steps are done" in more.stderr
    assert f"settings changed at step {done}: --steps was 100000, now {done + 1}; for a new run, give" in more.stderr
    noted = [record for record in metrics(run) if "changed" in record]
    assert noted == [{"step": done, "epoch": round(done / 6, 4), "changed": {"steps": [100000, done + 1]}}]


@pytest.mark.distributed
def test_two_ranks_hold_one_queue_and_divide_the_samples(shard_sets, tmp_path, torchrun):
    recorded = tmp_path / "recorded"
    recorded.mkdir()
    arguments = flags(shard_sets, tmp_path / "run", "--steps", "20")
    torchrun(2, SCRIPT, *arguments, env={"RECORD": str(recorded)})
    first, second = (torch.load(recorded / f"rank-{r}.pt", weights_only=True) for r in (0, 1))
    assert torch.equal(first["queue"]["queue_KD"], second["queue"]["queue_KD"])
    assert first["queue"]["pointer"].item() == second["queue"]["pointer"].item() == 20 * 16 % 40
    for epoch in range(0, 20, 6):
        mine, other = ([i for ids in recorded["ids"][epoch : epoch + 6] for i in ids] for recorded in (first, second))
        assert len(mine) == len(set(mine)) == len(other) and not set(mine) & set(other)
    for name in ("query_encoder", "key_encoder"):
        for key, value in first[name].items():
            if "running" not in key:  # each rank has its own BatchNorm statistics
                assert torch.equal(value, second[name][key]), (name, key)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    "order",
    [pytest.param(["--order", "global"], marks=pytest.mark.long), ["--order", "sharded", "--order-window", "8"]],
)
def test_a_rank_on_a_slow_file_system_holds_the_others_up_and_nothing_else(shard_sets, tmp_path, torchrun, order):
    """Two epochs; a deadlock would run into the time-out."""
    recorded = {"": tmp_path / "undisturbed", "1": tmp_path / "slow"}
    for slow, folder in recorded.items():
        folder.mkdir()
        arguments = flags(shard_sets, folder / "run", "--steps", "12", *order)
        torchrun(2, SCRIPT, *arguments, env={"RECORD": str(folder), "SLOW": slow})
    undisturbed, slow = (
        [torch.load(folder / f"rank-{r}.pt", weights_only=True) for r in (0, 1)] for folder in recorded.values()
    )
    assert [rank["delayed"] for rank in undisturbed] == [slow[0]["delayed"], 0] == [0, 0]
    assert slow[1]["delayed"] >= 12 * 8
    assert [rank["ids"] for rank in slow] == [rank["ids"] for rank in undisturbed]
    for epoch in (0, 6):
        assert sorted(i for rank in slow for ids in rank["ids"][epoch : epoch + 6] for i in ids) == list(range(96))
    assert losses(recorded["1"] / "run") == losses(recorded[""] / "run")


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "restarts"), [(2, 1), pytest.param(3, None, marks=pytest.mark.long)])
def test_killed_ranks_continue_bit_for_bit(shard_sets, tmp_path, torchrun, ranks, restarts):
    """With `--max-restarts 1` by themselves, once one rank is killed; else by the same command."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = ["--steps", "5", "--checkpoint-every", "2", "--batch-size", "12"]
    torchrun(ranks, "-m", "fastmoco.train", *flags(shard_sets, whole, *more))
    if restarts:
        env = {"KILL_AT": "2", "KILL_ONCE": "1"}
        said = torchrun(ranks, SCRIPT, *flags(shard_sets, cut, *more), env=env, restarts=restarts).stderr
        assert said.count("continuing from") == 1
    else:
        torchrun(ranks, SCRIPT, *flags(shard_sets, cut, *more), env={"KILL_AT": "2"}, check=False)
        assert not (cut / "checkpoints" / "step-00000005.pt").exists()
        torchrun(ranks, "-m", "fastmoco.train", *flags(shard_sets, cut, *more))
    assert losses(cut) == losses(whole)
    assert_equal_states(final_state(cut), final_state(whole))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--shards", "nowhere"], "nowhere"),
        (["--batch-size", "97"], "has 96 samples, fewer than --batch-size 97"),
        (["--batch-size", "15", "--bn-splits", "4"], "use 12 or 16"),
        (["--recipe", "simclr"], "unknown --recipe 'simclr'"),
        (["--knn-every", "1", "--knn-val", "nowhere"], "nowhere"),
        (["--resume", "nowhere.pt"], "there is no checkpoint nowhere.pt"),
    ],
)
def test_a_users_mistake_ends_in_one_line(shard_sets, tmp_path, in_process, change, message):
    result = in_process(
        "-m",
        "fastmoco.train",
        *flags(shard_sets, tmp_path / "run", "--steps", "1"),
        *change,
        check=False,
    )
    assert result.returncode == 2
    assert message in result.stderr and "Traceback" not in result.stderr
