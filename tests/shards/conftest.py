"""A folder of images, the set packed from it, and that set with more images."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.commands import InProcess
from tests.support.pictures import gradient, jpeg
from tests.support.sets import pack_set

MORE = {"shard_size": 10, "append": True}
"""How the images of `more` are appended."""


@pytest.fixture
def cli(in_process: InProcess) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs fastmoco-shard in the test's process."""
    return partial(in_process, "-m", "shards.cli", check=False)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 noisy JPEGs in three class folders."""
    root = tmp_path_factory.mktemp("images")
    for number in range(120):
        path = root / f"class {number % 3}" / f"{number:03d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(gradient(60 + number, 50 + number % 7, seed=number)))
    return root


@pytest.fixture(scope="session")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That folder in five shards of 25 (the last of 20), packed by one worker; not to be changed."""
    return pack_set(folder, tmp_path_factory.mktemp("set") / "shards", shard_size=25)


@pytest.fixture(scope="session")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of two known classes and two new ones, the first and the last by name, and a bad one."""
    root = tmp_path_factory.mktemp("more")
    for number in range(24):
        path = root / ("class 1", "class 0", "a new one", "z")[number % 4] / f"{number:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(gradient(50 + number, 64, seed=1000 + number)))
    (root / "z" / "bad.jpg").write_bytes(jpeg(gradient(50, 64, seed=7))[:-900])
    return root


@pytest.fixture(scope="session")
def appended(packed: Path, more: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set with the images of `more`, packed by one worker; not to be changed."""
    return pack_set(more, shutil.copytree(packed, tmp_path_factory.mktemp("appended") / "set"), **MORE)


@pytest.fixture(scope="module")
def started_ray() -> Iterator[None]:
    """One small Ray for the tests of a module; packing uses an existing connection."""
    pytest.importorskip("ray", reason="Ray is not installed")
    from shards.packing.executors._ray import connected

    with connected(2, None):
        yield
