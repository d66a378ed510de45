"""Weights & Biases, by the real package in its offline mode."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
from PIL import Image

from fastmoco.config import ConfigError
from fastmoco.recipes import recipe
from fastmoco.runs.log import RunLog
from fastmoco.trainer.loop import train
from shards.progress import Pace


def test_a_run_and_its_restart_are_one_run_on_disk_without_credentials(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(sys, "argv", ["x", "--header", "hidden-value"])
    Image.new("RGB", (8, 8)).save(tmp_path / "views.png")
    config = {"wandb": "project", "lr": 0.25, "stream": "https://joe:pw-hidden@host/a.tar"}
    for step in (1, 2):
        log = RunLog(tmp_path, config, step - 1, Pace(2))
        log.write({"step": step, "epoch": 0.5, "loss": 3.0, "knn_top1": 5.0, "knn_images": 24}, "a line")
        log.show("views", tmp_path / "views.png", step)
        log.close()
    wandb.teardown()  # ends the process that sends
    name = json.loads((tmp_path / "wandb.json").read_text())["id"]
    runs = list((tmp_path / "wandb").glob(f"offline-run-*-{name}"))
    files = [path for path in (tmp_path / "wandb").rglob("*") if path.is_file() and not path.is_symlink()]
    assert runs and len(list((tmp_path / "wandb").rglob("*.wandb"))) >= 1
    written = b"".join(path.read_bytes() for path in files)
    assert all(word in written for word in (b"train/loss", b"probe/knn_top1", b"https://***@host/a.tar", b"0.25"))
    assert b"pw-hidden" not in written and b"hidden-value" not in written
    assert list((tmp_path / "wandb").rglob("views*.png"))


def test_a_missing_package_is_said_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr("fastmoco.runs.wandb_board.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--wandb p needs the package wandb: pip install 'fastmoco\[wandb\]'"):
        train(replace(recipe("demo"), wandb="p", shards=tmp_path / "nowhere"))
