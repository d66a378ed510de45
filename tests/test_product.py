"""The product as it is installed and as the README shows it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def test_a_wheel_built_among_tars_holds_three_packages_and_no_tar(tmp_path, command, shard_sets):
    tree = tmp_path / "tree"
    ignore = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", "*.tar", "*.npy", "*.idx", "dist")
    shutil.copytree(ROOT, tree, ignore=ignore)
    for file in (shard_sets / "train").iterdir():  # as after `fastmoco-shard --out shards/` in the repository
        shutil.copy(file, tree / "shards")
    command(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, cwd=tree)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    roots = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert roots == {"fastmoco", "pipelines", "shards"}
    stray = [n for n in names if ".dist-info/" not in n and not n.endswith((".py", "py.typed"))]
    assert not stray
    assert {f"{package}/py.typed" for package in roots} <= set(names)


@pytest.mark.slow
def test_the_three_commands_work_from_a_folder_with_data_in_shards(photos, tmp_path, command):
    shutil.copytree(photos / "train", tmp_path / "imagenet")
    packed = command(BIN / "fastmoco-shard", "--src", "imagenet/", "--out", "shards/")
    assert "96 images" in packed.stdout + packed.stderr
    # as written it trains a ResNet-50 with batches of 256 and says that these are too few images for that
    refused = command(BIN / "torchrun", "-m", "fastmoco.train", check=False)
    assert "shards has 96 samples, fewer than --batch-size 256" in refused.stderr
    command(BIN / "torchrun", "-m", "fastmoco.train", "--recipe", "demo", "--batch-size", "32", "--steps", "2")
    assert (tmp_path / "runs" / "demo" / "checkpoints" / "step-00000002.pt").exists()


@pytest.mark.slow
def test_the_default_training_starts_from_the_default_folder(photos, tmp_path, command):
    """`torchrun -m fastmoco.train` with no flag at all, on a set that is large enough for its batch."""
    for copy in range(3):
        shutil.copytree(photos / "train", tmp_path / "imagenet" / f"part {copy}")
    command(BIN / "fastmoco-shard", "--src", "imagenet/", "--out", "shards/")
    with (tmp_path / "log").open("w") as log:
        launcher = [BIN / "torchrun", "-m", "fastmoco.train"]
        process = subprocess.Popen(launcher, cwd=tmp_path, stderr=log)
        deadline = time.monotonic() + 120
        while not (tmp_path / "runs/moco-v2/views.png").exists():  # the first batch is there
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        # torchrun gives its workers sessions of their own, and one that is left alone trains on for ever
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert workers
        for number in (process.pid, *map(int, workers)):
            os.kill(number, signal.SIGKILL)
        process.wait()
    assert "moco-v2: resnet50 on 1 × " in (tmp_path / "log").read_text()


def test_readmes_commands_have_the_flags_they_show(command):
    """Every python command of the README's code blocks names modules and flags that exist."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    shown: dict[str, set[str]] = {}
    for line in lines:
        found = re.match(r"(?:torchrun (?:--nproc-per-node \d+ )?|python )(?:-m )?(\S+)(.*)", line)
        if found:
            shown.setdefault(found[1], set()).update(re.findall(r"--[a-z-]+", found[2]))
        elif line.startswith("fastmoco-shard --"):
            shown.setdefault("fastmoco-shard", set()).update(re.findall(r"--[a-z-]+", line))
    assert {"fastmoco.train", "fastmoco.knn", "fastmoco.demo", "benchmarks/imgs_per_sec.py"} <= set(shown)
    for name, flags in shown.items():
        if name == "fastmoco-shard":
            launcher = [BIN / name]
        else:
            launcher = [sys.executable, ROOT / name] if name.endswith(".py") else [sys.executable, "-m", name]
        told = command(*launcher, "--help").stdout
        assert not {flag for flag in flags if flag not in told}, (name, flags)
