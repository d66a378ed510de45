from __future__ import annotations

import json
import logging
import os
import runpy
import select
import signal
import socket
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
    from fastmoco.demo.made import make_images

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


class WarmStart:
    """Runs python commands in processes forked from one that has done their imports (`warm_start.py`)."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, arguments, environments, cwd, timeout) -> tuple[list[int], str, str]:
        """Exit codes of one process for each environment, and all that they said."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, Path(__file__).parent / "warm_start.py"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            out.touch(), err.touch()
            request = {"arguments": arguments, "cwd": str(cwd), "environments": environments}
            assert self._process.stdin and self._process.stdout
            print(json.dumps(request | {"out": str(out), "err": str(err)}), file=self._process.stdin, flush=True)
            ready, _, _ = select.select([self._process.stdout], [], [], timeout)
            if not ready:
                self.close()
                raise AssertionError(f"{arguments} took longer than {timeout} s\n{out.read_text()}{err.read_text()}")
            return json.loads(self._process.stdout.readline()), out.read_text(), err.read_text()

    def close(self) -> None:
        """End the process and all that it forked."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="session")
def warm_start() -> Iterator[WarmStart]:
    """Runs python commands without the seconds of their imports."""
    start = WarmStart()
    yield start
    start.close()


@pytest.fixture
def command(tmp_path, warm_start):
    """Run a command as a user would, from a folder of its own; returns the completed process.

    Modules of fastmoco and the tests' scripts start warm; `cold=True` starts them as a shell would.
    """

    def run(*arguments, cwd=tmp_path, timeout=300, env=None, check=True, cold=False):
        names = [str(a) for a in arguments]
        full = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        first, what = names[0], names[1:3]
        ours = (what[0] == "-m" and what[1].startswith("fastmoco.")) or what[0].startswith(str(ROOT / "tests"))
        if first == sys.executable and ours and not cold:
            (code,), out, err = warm_start(names[1:], [full], cwd, timeout)
            result = subprocess.CompletedProcess(names, code, out, err)
        else:
            result = subprocess.run(names, cwd=cwd, timeout=timeout, capture_output=True, text=True, env=full)
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
        monkeypatch.setenv("COLUMNS", "1000")  # so that no message is broken
        root = logging.getLogger()
        before, level = root.handlers[:], root.level
        code = 0
        try:
            if names[0] == "-m":
                monkeypatch.setattr(sys, "argv", names[1:])
                monkeypatch.delitem(sys.modules, names[1], raising=False)
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
def torchrun(tmp_path, warm_start):
    """Run a script (or `-m module`) on N gloo processes, with the variables that torchrun gives them."""

    def run(processes, *arguments, timeout=300, env=None, check=True):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), **(env or {})}
        ranks = [{**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        names = [str(a) for a in arguments]
        codes, out, err = warm_start(names, ranks, tmp_path, timeout)
        if check:
            assert not any(codes), out + err
        return subprocess.CompletedProcess(names, next((code for code in codes if code), 0), out, err)

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
