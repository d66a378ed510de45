from __future__ import annotations

import logging
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

# several of pytest's workers share the cores with the commands that they start
if "PYTEST_XDIST_WORKER" in os.environ:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(share))  # before torch is imported

# where the tests run in the background of a shell, commands that they start would not hear Ctrl-C
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Class folders of procedural JPEGs: photos/train (96) and photos/val (24), 4 classes, 64 pixels."""
    from shards.made import make_images

    folder = tmp_path_factory.mktemp("photos")
    make_images(folder / "train", classes=4, per_class=24, size=64, seed=0)
    make_images(folder / "val", classes=4, per_class=6, size=64, seed=1)
    return folder


@pytest.fixture(scope="session")
def shard_sets(photos, tmp_path_factory):
    """Folder with the packed sets train (96 samples in 3 shards) and val (24)."""
    from shards import PackOptions, pack

    folder = tmp_path_factory.mktemp("sets")
    for name in ("train", "val"):
        pack(PackOptions(src=photos / name, out=folder / name, workers=1, shard_size=32), progress=False)
    return folder


@pytest.fixture
def command(tmp_path):
    """Run a command as a user would, from a folder of its own; returns the completed process."""

    def run(*arguments, cwd=tmp_path, timeout=300, env=None, check=True):
        result = subprocess.run(
            [str(a) for a in arguments],
            cwd=cwd,
            timeout=timeout,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        )
        if check:
            assert result.returncode == 0, result.stdout + result.stderr
        return result

    return run


@pytest.fixture
def in_process(tmp_path, monkeypatch, capsys):
    """`command` for `python -m MODULE` and `python SCRIPT` in this process: no seconds of imports, for mistakes say."""

    def run(python, *arguments, check=True):
        assert python == sys.executable
        names = [str(argument) for argument in arguments]
        monkeypatch.chdir(tmp_path)
        root = logging.getLogger()
        before, level = root.handlers[:], root.level
        code = 0
        try:
            if names[0] == "-m":
                monkeypatch.setattr(sys, "argv", names[1:])
                runpy.run_module(names[1], run_name="__main__", alter_sys=True)
            else:
                monkeypatch.setattr(sys, "argv", names)
                monkeypatch.syspath_prepend(Path(names[0]).parent)
                runpy.run_path(names[0], run_name="__main__")
        except SystemExit as left:
            assert isinstance(left.code, int)
            code = left.code
        finally:
            root.handlers[:], root.level = before, level
        told = capsys.readouterr()
        assert code == 0 or not check, told.out + told.err
        return subprocess.CompletedProcess(names, code, told.out, told.err)

    return run


@pytest.fixture
def torchrun(command):
    """Run a script (or `-m module`) under torchrun on N gloo processes."""

    def run(processes, *arguments, **options):
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            processes,
        ]
        return command(*launcher, *arguments, **options)

    return run


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Endpoint of an S3 server on this machine, with the bucket `bucket`."""
    moto_server = pytest.importorskip("moto.server", reason="needs moto[server] and s3fs")
    botocore = pytest.importorskip("botocore.session")
    pytest.importorskip("s3fs")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        botocore.get_session().create_client("s3").create_bucket(Bucket="bucket")
        yield endpoint
    server.stop()


@pytest.fixture
def s3(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty place in that server; caches and scratch files of its users lie below `tmp_path`."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setenv("FASTMOCO_CACHE", str(tmp_path / "cache"))
    return f"s3://bucket/{uuid.uuid4().hex}"
