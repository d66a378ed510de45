"""Files of a run folder, a set or --config that are not what their name says: one line, nothing written through."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout

import pytest
import torch

from fastmoco.api.pretraining import Run
from fastmoco.config import Config
from fastmoco.config_file import read
from fastmoco.flags import ConfigError
from fastmoco.ranks.world import World
from fastmoco.report import show
from fastmoco.report.neighbours import compute
from fastmoco.runs.lock import only_writer
from pipelines.quarantine import Quarantine
from shards import ShardSet
from shards.errors import ShardSetError
from shards.storage.files import partial, write_whole

HERE = World(0, 1, torch.device("cpu"))
NESTED = b"[" * 100_000


@pytest.mark.parametrize(
    "name",
    [
        "lock",
        "config.json",
        "status.json",
        "quarantine.jsonl",
        "views.png",
        "checkpoints/step-00000004.pt",
        "x.partial",
    ],
)
def test_a_link_in_the_place_of_a_file_is_not_written_through(tmp_path, name):
    outside, path = tmp_path / "outside", tmp_path / "run" / name
    outside.write_text("mine")
    path.parent.mkdir(parents=True)
    path.symlink_to(outside)
    with pytest.raises(ConfigError) as found, only_writer(tmp_path / "run", HERE):
        pass
    assert str(found.value) == f"{path} is a link to {outside}; a run needs a file of its own there: move it away"
    assert outside.read_text() == "mine" and path.is_symlink()


@pytest.mark.parametrize("name", ["config.json", "status.json", "checkpoints/step-00000004.pt"])
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path, name):
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"{name} is a folder; a run needs"), only_writer(tmp_path, HERE):
        pass


def test_a_run_folder_and_its_checkpoints_may_be_links_to_another_disk(tmp_path):
    (tmp_path / "large/checkpoints").mkdir(parents=True)
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to("real")
    (tmp_path / "run/checkpoints").symlink_to(tmp_path / "large/checkpoints")
    with only_writer(tmp_path / "run", HERE):
        assert (tmp_path / "real/lock").exists()


def test_a_partial_file_is_not_written_through_a_link(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    partial(tmp_path / "a.json").symlink_to(outside)
    with pytest.raises(OSError, match=r"a\.json"):
        write_whole(tmp_path / "a.json", b"{}")
    assert outside.read_text() == "mine" and not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\xff", NESTED, b"[1", b"null", b'{"step": 1e999}', b'{"step": 1, "epoch": "1"}',
        b'{"step": 1, "epoch": {}}',
        b'{"step": 1, "epoch": 1e999, "loss": 1.0}', b'{"sample": {}, "cause": "x", "step": true}',
    ],
)  # fmt: skip
def test_damaged_files_of_a_run_are_shown_as_far_as_they_can_be_read(tmp_path, content):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "status.json", "neighbours.json", "quarantine.jsonl"):
        (run / name).write_bytes(content + b"\n")
    Quarantine(run / "quarantine.jsonl", "a" * 64, 0)
    (run / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2.0}\n' + content + b'\n{"step": 2, "loss": 1.0}\n')
    assert [record["step"] for record in Run(run).metrics] == [1, 2]
    with redirect_stdout(io.StringIO()) as said:
        show.run(show.Args((run,), out=tmp_path / "page.html"))
    assert "page: " in said.getvalue() and "run" in said.getvalue()
    with pytest.raises(ConfigError):
        compute(run)


def test_folders_in_the_place_of_a_runs_files_are_left_out(tmp_path):
    for name in ("config.json", "status.json", "metrics.jsonl", "neighbours.json"):
        (tmp_path / "run" / name).mkdir(parents=True)
    with redirect_stdout(io.StringIO()):
        show.run(show.Args((tmp_path / "run",), out=tmp_path / "page.html"))
    assert Run(tmp_path / "run").metrics == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b"\x80\xff", r"is not JSON: byte 0 is no text in UTF-8"),
        ("a.json", NESTED, r"is not JSON: it is nested too deeply"),
        ("a.toml", b"a = " + NESTED, r"is not TOML"),
        ("a.toml", b"\x80", r"is not TOML"),
        ("a.json", b"[]", r"holds no names with values"),
    ],
)
def test_a_damaged_config_is_named_in_a_line(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said) as found:
        read(tmp_path / name, Config)
    assert len(str(found.value).splitlines()) == 1


def test_a_manifest_that_looks_like_other_text_is_named(tmp_path):
    (tmp_path / "manifest.json").write_bytes(b"\0\0\0{" + os.urandom(8))  # UTF-32, by its first bytes
    with pytest.raises(ShardSetError, match=r"manifest\.json"):
        ShardSet(tmp_path)
