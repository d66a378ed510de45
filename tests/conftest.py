"""Fixtures of all tests; what they are made of is in `tests/support`."""

from __future__ import annotations

import os
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# pytest's workers share the cores with each other and with the commands that they start
if "PYTEST_XDIST_WORKER" in os.environ:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(share))  # before torch is imported

# a shell starts background jobs with SIGINT ignored, which the tests' commands would inherit
signal.signal(signal.SIGINT, signal.default_int_handler)

# under nohup it is ignored, and a test that waits for it would wait for ever
signal.signal(signal.SIGHUP, signal.SIG_DFL)

from tests.support.commands import Command, InProcess, Torchrun, WarmStart  # noqa: E402
from tests.support.faulty import Faults, FaultyServer  # noqa: E402
from tests.support.s3 import served_bucket  # noqa: E402
from tests.support.sets import pack_set  # noqa: E402


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of procedural JPEGs: photos/train (96) and photos/val (24), 4 classes, 64 pixels."""
    from fastmoco.demo.made import make_images

    folder = tmp_path_factory.mktemp("photos")
    make_images(folder / "train", classes=4, per_class=24, size=64, seed=0)
    make_images(folder / "val", classes=4, per_class=6, size=64, seed=1)
    return folder


@pytest.fixture(scope="session")
def shard_sets(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the packed sets train (96 samples in 3 shards) and val (24)."""
    folder = tmp_path_factory.mktemp("sets")
    for name in ("train", "val"):
        pack_set(photos / name, folder / name, shard_size=32)
    return folder


@pytest.fixture(scope="session")
def warm_start() -> Iterator[WarmStart]:
    """Starts python commands without the seconds of their imports."""
    start = WarmStart()
    yield start
    start.close()


@pytest.fixture
def command(tmp_path: Path, warm_start: WarmStart) -> Command:
    """Runs a command as a user would, from a folder of its own."""
    return Command(tmp_path, warm_start)


@pytest.fixture
def torchrun(tmp_path: Path, warm_start: WarmStart) -> Torchrun:
    """Runs a script or module on several gloo processes."""
    return Torchrun(tmp_path, warm_start)


@pytest.fixture
def in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    """Runs a script or module in the test's process, the quickest way to test what a command prints."""
    return InProcess(tmp_path, monkeypatch, capsys)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[FaultyServer]:
    """An S3 server on this machine with the bucket `bucket`; it has no faults until a test gives it some."""
    with served_bucket() as server:
        yield server


@pytest.fixture
def s3_faults(s3_server: FaultyServer) -> Iterator[Callable[..., Faults]]:
    """Gives the S3 server faults, with the arguments of `Faults`, until the test ends."""

    def begin(*arguments: Any, **options: Any) -> Faults:
        s3_server.faults = Faults(*arguments, **options)
        return s3_server.faults

    yield begin
    s3_server.faults = Faults()


@pytest.fixture
def s3(s3_server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty place in that server; caches and scratch files of its users are below `tmp_path`."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # of clients that hold another test's credentials
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setenv("FASTMOCO_CACHE", str(tmp_path / "cache"))
    return f"s3://bucket/{uuid.uuid4().hex}"
