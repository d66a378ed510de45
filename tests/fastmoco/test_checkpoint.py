from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastmoco.checkpoints import checkpoint, saving
from fastmoco.checkpoints.checkpoint import CheckpointError
from fastmoco.recipes import recipe
from fastmoco.trainer.resume import check_compatible
from tests.support.runs import PickledCode


def save(folder, step, keep=3):
    return saving.save(folder, {"progress": {"step": step}, "value": torch.full((500,), step)}, keep)


def test_the_newest_are_kept_and_nothing_half_written(tmp_path):
    for step in (1, 5, 10, 200):
        save(tmp_path, step)
    assert [p.name for p in checkpoint.found(tmp_path)] == [f"step-{n:08d}.pt" for n in (200, 10, 5)]
    assert not list(tmp_path.glob("*.partial"))
    path, state = checkpoint.newest(tmp_path)
    assert path.name == "step-00000200.pt" and state["value"][0] == 200


def test_a_folder_that_cannot_be_read_is_not_one_without_checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the folders above need not be readable then
    tmp_path.chmod(0o755)
    folder = Path("run/checkpoints")
    folder.mkdir(parents=True)
    save(folder, 1)
    folder.chmod(0o311)
    is_root = os.geteuid() == 0  # may read whatever the permissions are
    try:
        if is_root:
            os.seteuid(65534)
        for call in (checkpoint.newest, checkpoint.found, checkpoint.unsure):
            with pytest.raises(PermissionError, match="Permission denied: 'run/checkpoints'"):
                call(folder)
        with pytest.raises(PermissionError, match="Permission denied: 'run/checkpoints'"):
            checkpoint.newest_of(Path("run"))
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)
    assert checkpoint.found(Path("none")) == checkpoint.found(next(folder.iterdir())) == []


def flip_a_bit_of_a_tensor(data):
    at = data.index(torch.full((500,), 2).numpy().tobytes()) + 1000
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-300], lambda b: b"", lambda b: b[:2000] + b"\0" * (len(b) - 2000), flip_a_bit_of_a_tensor]
)
def test_a_damaged_newest_one_is_reported_and_the_one_before_taken(tmp_path, caplog, damage):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    newest.write_bytes(damage(newest.read_bytes()))
    with caplog.at_level(logging.WARNING):
        path, _ = checkpoint.newest(tmp_path)
    assert path.name == "step-00000001.pt"
    assert "step-00000002.pt cannot be read" in caplog.text


def test_a_change_that_the_checksums_do_not_show_is_found(tmp_path, caplog):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    state = torch.load(newest, weights_only=True)
    state["value"][7] = 3
    torch.save(state, newest)
    with caplog.at_level(logging.WARNING):
        path, _ = checkpoint.newest(tmp_path)
    assert path.name == "step-00000001.pt"
    assert "step-00000002.pt is damaged: its content differs from its hash" in caplog.text


def test_a_checkpoint_of_before_the_hash_is_read(tmp_path):
    state = {"format": checkpoint.FORMAT, "progress": {"step": 1}, "value": torch.ones(3)}
    torch.save(state, tmp_path / "step-00000001.pt")
    assert checkpoint.load(tmp_path / "step-00000001.pt")["value"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        ({"step": 1}, "holds step 1, not that of its name"),
        ({"step": -2}, "its step is -2"),
        ({"step": 10**8}, "its step is 100000000"),
        ({"step": True}, "its step is True"),
        ({"step": [2] * 1000}, "its step is [2, 2"),
        ({}, "its step is not given"),
        (7, "its step is not given"),
    ],
)
def test_a_step_that_is_not_its_names_or_of_no_run_is_refused(tmp_path, caplog, progress, said):
    save(tmp_path, 1)
    torch.save({"format": checkpoint.FORMAT, "progress": progress}, tmp_path / "step-00000002.pt")
    with caplog.at_level(logging.WARNING):
        assert checkpoint.newest(tmp_path)[0].name == "step-00000001.pt"
    assert "step-00000002.pt" in caplog.text and said in caplog.text and len(caplog.text) < 1000


def test_no_run_starts_over_where_all_checkpoints_are_damaged(tmp_path):
    save(tmp_path, 1).write_bytes(b"no zip")
    with pytest.raises(CheckpointError, match="can be read, of 1 tried"):
        checkpoint.newest(tmp_path)
    assert checkpoint.newest(tmp_path / "empty") is None


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    torch.save({"format": checkpoint.FORMAT, "value": PickledCode()}, tmp_path / "step-00000001.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(tmp_path / "step-00000001.pt")


def test_a_foreign_file_is_named(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "moco.pth")
    with pytest.raises(CheckpointError, match=r"moco\.pth is not a checkpoint of this program"):
        checkpoint.load(tmp_path / "moco.pth")


def test_only_a_continuation_of_the_same_run_is_compatible():
    config = recipe("demo")
    state = {"config": config.to_dict(), "data": {"digest": "a" * 64, "samples": 96}}
    check_compatible(Path("old.pt"), state, replace(config, lr=0.5, epochs=99), "a" * 64)
    del state["config"]["zero_init_residual"]  # as in a checkpoint older than the setting
    check_compatible(Path("old.pt"), state, config, "a" * 64)
    with pytest.raises(CheckpointError, match=r"old\.pt is of another run: --zero-init-residual was False, now True"):
        check_compatible(Path("old.pt"), state, replace(config, zero_init_residual=True), "a" * 64)
    with pytest.raises(CheckpointError, match="the shard set was aaaaaaaaaaaa, now bbbbbbbbbbbb"):
        check_compatible(Path("old.pt"), state, config, "b" * 64)


def test_of_a_hash_a_message_has_the_first_digits():
    assert checkpoint.in_words({"train": ("ab" * 32, "cd" * 32)}) == ["train was abababababab, now cdcdcdcdcdcd"]
    assert checkpoint.in_words({"arch": ("resnet18", None)}) == ["arch was 'resnet18', now not given"]


def test_the_order_is_compared_as_what_it_means_for_the_set():
    config = recipe("demo")
    state = {"config": config.to_dict(), "data": {"digest": "a" * 64, "samples": 96}}
    check_compatible(Path("old.pt"), state, replace(config, order="global"), "a" * 64)
    with pytest.raises(CheckpointError, match="--order was 'global', now 'sharded'"):
        check_compatible(Path("old.pt"), state, replace(config, order="sharded"), "a" * 64)
    with pytest.raises(CheckpointError, match="--order-window was 4096, now 100"):
        check_compatible(Path("old.pt"), state, replace(config, order_window=100), "a" * 64)
    state["data"]["samples"] = 10**9
    check_compatible(Path("old.pt"), state, replace(config, order="sharded"), "a" * 64)
    del state["config"]["order"]  # as in a checkpoint older than `sharded`
    check_compatible(Path("old.pt"), state, replace(config, order="global"), "a" * 64)
    with pytest.raises(CheckpointError, match="--order was 'global', now 'sharded'"):
        check_compatible(Path("old.pt"), state, config, "a" * 64)


def test_a_file_that_is_cut_short_is_said_to_be(tmp_path):
    path = tmp_path / "step-00000003.pt"
    torch.save({"format": checkpoint.FORMAT, "progress": {"step": 3}, "weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:3000])
    said = r"cannot be read: it is cut short: the end of the archive is missing; use the checkpoint before it"
    with pytest.raises(CheckpointError, match=said):
        checkpoint.load(path)
