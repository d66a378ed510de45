"""The three commands of the README, word for word: in the root of a fresh clone, and in a folder of the user's own.

The clone stands for a checkout after `pip install -e .`: its root is first on Python's path.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACK = "fastmoco-shard --src imagenet/ --out shards/"
TRAIN = "torchrun -m fastmoco.train"
MEASURE = "python benchmarks/imgs_per_sec.py"
Shell = Callable[..., subprocess.CompletedProcess[str]]


def git(*arguments: object, cwd: Path = ROOT) -> str:
    line = ["git", *map(str, arguments)]
    return subprocess.run(line, cwd=cwd, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A clone of the repository, with the changes that are not committed yet."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    root = tmp_path_factory.mktemp("clone") / "fastmoco"
    git("clone", "--quiet", ROOT, root)
    for name in filter(None, git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).unlink(missing_ok=True)
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, root / name)
    changes = ["-c", "user.name=test", "-c", "user.email=test", "commit", "--quiet", "--allow-empty", "-m", "changes"]
    git("add", "--all", cwd=root)
    git(*changes, cwd=root)
    return root


def environment(**extra: str) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        **extra,
    }


def shell(line: str, cwd: Path, code: int = 0, **extra: str) -> str:
    """Run a command line as it is typed; its output."""
    done = subprocess.run(
        line, shell=True, cwd=cwd, env=environment(**extra), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def lay_out_images(photos: Path, folder: Path) -> None:
    """288 images in `imagenet/`: enough for one batch of the default training."""
    for copy in range(3):
        shutil.copytree(photos / "train", folder / "imagenet" / f"part {copy}")


def train_until_the_first_batch(folder: Path, **extra: str) -> str:
    """The default training trains for 200 epochs; it is ended when its first batch is there. Its log."""
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(TRAIN.split(), cwd=folder, env=environment(**extra), stderr=file)
        while process.poll() is None and not list(folder.glob("runs/moco-v2-resnet50-*/views.png")):
            time.sleep(0.2)
        ended = process.poll() is not None
        process.kill()  # its worker ends with it, in the middle of a step of many seconds
        process.wait()
    assert not ended, log.read_text()
    return log.read_text()


def test_the_readme_shows_these_three_commands():
    shown = "".join(f"    {line}\n" for line in (PACK, TRAIN, MEASURE))
    assert shown in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_three_commands_in_the_root_of_a_fresh_clone(clone, photos):
    lay_out_images(photos, clone)
    ours = {"PYTHONPATH": str(clone)}
    assert "packed 288 images into 1 shard" in shell(PACK, clone, **ours)
    assert "nothing was left to do" in shell(PACK, clone, **ours)
    assert "288 images in 1 shard: all as packed" in shell("fastmoco-shard verify shards/", clone, **ours)
    assert "288 in 1 shard" in shell("fastmoco-shard info shards/", clone, **ours)
    assert "moco-v2: resnet50 on 1 × " in train_until_the_first_batch(clone, **ours)
    (clone / "log").unlink()
    # as written it measures for a minute; what it says is the same after a moment
    measured = shell(f"{MEASURE} --seconds 0.1 --repeats 1 --batch-size 8", clone, **ours)
    assert "images/s" in measured and "shards" in measured
    assert git("status", "--porcelain", cwd=clone) == "", "packing changed the checkout, or its files are not ignored"


@pytest.mark.slow
def test_the_commands_in_a_folder_of_the_users_own(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "imagenet")  # train and val, as of ImageNet
    packed = shell(PACK, tmp_path)
    assert "packed 96 images" in packed
    assert "packed 24 images" in shell(re.findall("to pack val: (.*)", packed)[0], tmp_path)
    # as written it trains a ResNet-50 with batches of 256, and says that these are too few images for that
    assert "shards has 96 samples, fewer than --batch-size 256" in shell(TRAIN, tmp_path, code=1)
    shell(f"{TRAIN} --recipe demo --batch-size 32 --steps 2", tmp_path)
    (trained,) = tmp_path.glob("runs/demo-resnet10-*/checkpoints/step-00000002.pt")
    assert (tmp_path / "runs/latest").resolve() == trained.parent.parent
    # the third command outside a checkout: tests/benchmarks/test_imgs_per_sec.py
