"""A folder of images and the set packed from it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.commands import InProcess
from tests.support.pictures import gradient, jpeg
from tests.support.sets import pack_set


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
