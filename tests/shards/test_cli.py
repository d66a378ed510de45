from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards import ShardSet
from tests.support.commands import fastmoco_shard


def error(cli, *arguments: object) -> str:
    """The one line on stderr of a command that is expected to end with code 2."""
    done = cli(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("fastmoco-shard")
    return done.stderr


def test_user_errors_are_one_line_and_code_2(folder, packed, tmp_path, cli):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    both = ("--src", folder, "--out", out)
    assert "--src" in error(cli)
    assert "--src" in error(cli, "--out", out)
    assert "No such file" in error(cli, "--src", tmp_path / "nowhere", "--out", out)
    assert "no images found" in error(cli, "--src", tmp_path / "empty", "--out", out)
    assert "--quality 0 is outside 1..95" in error(cli, *both, "--quality", 0)
    assert "--quality 101 is outside 1..95" in error(cli, *both, "--quality", 101)
    assert "--shard-size 0 is outside 1..1000000" in error(cli, *both, "--shard-size", 0)
    assert "--resize 3 is outside" in error(cli, *both, "--resize", 3)
    assert "--workers -1 is outside" in error(cli, *both, "--workers", -1)
    assert "--seed -1 is below 0" in error(cli, *both, "--seed", -1)
    assert "invalid int value" in error(cli, *both, "--limit", "many")
    assert f"--out {folder} is the same as --src {folder}; name a folder" in error(
        cli, "--src", folder, "--out", folder
    )
    assert "no such command: 'verfiy'" in error(cli, "verfiy", packed)
    assert "--seed was 0, now 1" in error(cli, "--src", folder, "--out", packed, "--shard-size", 25, "--seed", 1)
    assert "no such folder" in error(cli, "verify", tmp_path / "nowhere")
    assert "--workers -1 is outside 0..1024" in error(cli, "verify", packed, "--workers", -1)
    assert f"fastmoco pack --src {tmp_path / 'empty'} --out" in error(cli, "index", tmp_path / "empty")
    assert "--src s3://a/b --source tars" in error(cli, "index", "s3://a/b")
    assert f"{tmp_path / 'nowhere'} does not exist; give the folder that holds" in error(
        cli, "index", tmp_path / "nowhere"
    )
    assert "no manifest.json" in error(cli, "info", tmp_path / "empty")
    assert not out.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_that_cannot_be_written(folder, tmp_path, cli):
    tmp_path.chmod(0o500)
    assert "cannot write" in error(cli, "--src", folder, "--out", tmp_path / "out")


def test_an_output_that_is_a_file(folder, tmp_path, cli):
    (tmp_path / "file").write_text("")
    remedy = "; name a folder that you may write to\n"
    assert f"{tmp_path}/file: Not a directory{remedy}" in error(cli, "--src", folder, "--out", tmp_path / "file")
    # before any work, also where root may write anywhere else
    assert f"/proc/x: No such file or directory{remedy}" in error(cli, "--src", folder, "--out", "/proc/x")


def test_a_server_that_refuses_is_one_line(tmp_path, cli):
    done = cli("--src", "http://127.0.0.1:9/x.tar", "--out", tmp_path / "out", "--retries", 0)
    assert done.stderr == "fastmoco-shard: cannot read http://127.0.0.1:9/x.tar: Connection refused\n"
    assert done.returncode == 2 and not (tmp_path / "out").exists()


def test_packing_from_another_folder_with_a_data_folder_called_shards(folder, tmp_path):
    (tmp_path / "shards").mkdir()
    result = fastmoco_shard("--src", folder, "--out", "shards/", "--workers", 2, "--shard-size", 60, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "packed 120 images into 2 shards" in result.stdout
    assert "images/s" in result.stdout
    assert "\x1b" not in result.stdout
    again = fastmoco_shard("--src", folder, "--out", "shards/", "--shard-size", 60, cwd=tmp_path)
    assert "nothing was left to do" in again.stdout
    assert len(ShardSet(tmp_path / "shards")) == 120


def test_verify_and_info(packed, tmp_path, cli):
    done = cli("verify", packed)
    assert done.returncode == 0
    assert "120 images in 5 shards: all as packed" in done.stdout
    done = cli("info", packed)
    assert done.returncode == 0
    text = done.stdout
    for part in ("120 in 5 shards", "class 1: 40", "60 to 179 pixels", "seed 0", ShardSet(packed).digest):
        assert part in text
    with ShardSet(packed) as shard_set:
        rows = shard_set.rows(np.arange(120))
    pixels = rows["width"].astype(int) * rows["height"]
    counts = [int(((2**power <= pixels) & (pixels < 2 ** (power + 1))).sum()) for power in (11, 12, 13)]
    assert sum(counts) == 120
    for low, high, count in (("2 Ki", "4 Ki", counts[0]), ("4 Ki", "8 Ki", counts[1]), ("8 Ki", "16 Ki", counts[2])):
        assert re.search(rf"{low} to {high} +{count}  #+$", text, re.MULTILINE)
    assert f"{8 * rows['size'].sum() / pixels.sum():.2f} bits a pixel" in text
    quartiles = np.percentile(rows["width"], (25, 50, 75), method="nearest")
    assert f"quartiles {', '.join(map(str, quartiles))}" in text
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    (copy / "shard-000001.idx").unlink()
    done = cli("verify", copy)
    assert done.returncode == 1
    assert "shard-000001.idx: cannot read" in done.stdout


def test_help_names_every_flag_and_command(cli):
    done = cli("--help")
    assert done.returncode == 0
    text = done.stdout
    flags = [
        "--src",
        "--out",
        "--workers",
        "--shard-size",
        "--resize",
        "--quality",
        "--seed",
        "--limit",
        "--overwrite",
        "--all-splits",
    ]
    for part in (*flags, "verify", "info", "index"):
        assert part in text


HEAVY = ("torch", "torchvision", "numba", "nvidia", "numpy", "PIL", "webdataset", "rich", "fsspec")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["verify", "--help"], 0),
        (["info", "--help"], 0),
        (["index", "--help"], 0),
        ([], 2),
        (["--src", "a", "--out", "b", "--colour"], 2),
        (["--src", "a", "--out", "b", "--quality", "0"], 2),
        (["verify", "a", "--workers", "-1"], 2),
        (["info"], 2),
        (["index", "s3://a/b"], 2),
        (["verfiy"], 2),
    ],
)
def test_help_and_a_wrong_flag_are_answered_before_anything_heavy_is_imported(arguments, code):
    script = f"""
import sys
from shards.cli import main
try:
    main({arguments!r})
finally:
    print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert code == 0 or (done.stderr.startswith("fastmoco-shard") and done.stderr.count("\n") == 1)


def test_an_error_of_the_system_is_one_line(tmp_path, cli):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "manifest.json").mkdir()
    assert "Is a directory" in error(cli, "info", tmp_path / "set")
    os.mkfifo(tmp_path / "set" / "a.tar")
    assert "no tars (*.tar) in" in error(cli, "index", tmp_path / "set")


def test_a_closed_pipe_ends_silently(packed):
    line = f"{sys.executable} -m shards.cli info {packed} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode in (0, 141)
