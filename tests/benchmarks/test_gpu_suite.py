"""gpu_suite.py on a CPU: parts that pass, fail and take too long, its rows and tables, and packages from a kit."""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tarfile
import time
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_suite.py"
TINY = ("--device", "cpu", "--tiny", "--out", "rows.jsonl")


@pytest.fixture
def suite_modules(monkeypatch):
    """The suite's modules, importable as from its script."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))


def _rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which it would run for minutes")
def test_without_a_gpu_it_says_what_it_needs(in_process):
    done = in_process(SCRIPT, check=False)
    assert done.returncode == 2 and "finds no CUDA device" in done.stderr and "--device cpu --tiny" in done.stderr


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("--parts", "kernel"), "unknown --parts 'kernel'; known: kernels, step,"),
        (("--parts",), "--parts has no value"),
        (("--with-dali", "--without-dali"), "leave all but one of them out"),
        (("--kit", "nowhere"), "--kit nowhere is not a folder"),
        (("--shards", "nowhere"), "nowhere"),
        (("--batch-size", "0"), "--batch-size is 0"),
        (("--minutes", "0"), "--minutes is 0"),
    ],
)
def test_flags_that_cannot_work_end_in_one_line(in_process, wrong, says):
    done = in_process(SCRIPT, "--device", "cpu", *wrong, check=False)
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1


def test_parts_run_on_a_cpu_and_leave_rows_and_tables(command, shard_sets, tmp_path):
    parts = ("torch-loader", "torch-loop")
    shown = command(sys.executable, SCRIPT, *TINY, "--shards", shard_sets / "train", "--parts", *parts).stdout
    machine, *rows = _rows(tmp_path)
    assert machine["card"] == "cpu" and machine["environment"]["packages"]["torch"]
    assert [(row["part"], row["status"]) for row in rows if "status" in row] == [(part, "passed") for part in parts]
    assert all(row["imgs_per_sec"] > 0 for row in rows if row["part"] == "torch-loader" and "threads" in row)
    (loop,) = [row for row in rows if row["part"] == "torch-loop" and "iterations" in row]
    assert loop["loss_is_finite"]
    table = (tmp_path / "rows.md").read_text()
    assert "### torch-loader" in table and "| torch-loop |" in table and table in shown


@pytest.mark.long
def test_a_part_that_fails_stops_no_other(command, shard_sets, tmp_path):
    damaged = tmp_path / "set"
    damaged.mkdir()
    for file in (shard_sets / "train").iterdir():  # no longer there when the parts read them
        if file.suffix != ".tar":
            (damaged / file.name).write_bytes(file.read_bytes())
    parts = ("torch-loader", "kernels")
    done = command(sys.executable, SCRIPT, *TINY, "--shards", damaged, "--parts", *parts, check=False)
    assert done.returncode == 1 and "torch-loader failed; see rows.jsonl" in done.stderr
    rows = _rows(tmp_path)[1:]
    assert [(row["part"], row["status"]) for row in rows if "status" in row] == [
        (parts[0], "failed"),
        (parts[1], "passed"),
    ]
    assert any("error" in row and row["part"] == "torch-loader" for row in rows)
    assert str(ROOT) not in (tmp_path / "rows.jsonl").read_text()  # rows are published
    kernels = [row for row in rows if row["part"] == "kernels" and "kernel" in row]
    assert {row["kernel"] for row in kernels} == {"loss and queue", "BatchNorm, ReLU", "colours"}
    assert all(row.get("difference", 0) < 1e-5 for row in kernels)
    assert "cannot be opened" in (tmp_path / "rows.md").read_text() or "tar" in (tmp_path / "rows.md").read_text()


def test_parts_for_which_no_time_is_left_are_not_run(command, shard_sets, tmp_path):
    flags = ("--minutes", 0.0001, "--parts", "torch-loop", "kernels", "--shards", shard_sets / "train")
    done = command(sys.executable, SCRIPT, *TINY, *flags, check=False)
    assert done.returncode == 1 and "torch-loop, kernels failed" in done.stderr
    statuses = [row["status"] for row in _rows(tmp_path)[1:] if "status" in row]
    assert statuses[1] == "not run: the 0.0001 minutes are over" and statuses[0] != "passed"


def test_a_part_ends_at_its_limit_with_what_it_started(suite_modules, tmp_path, monkeypatch):
    from _gpu.run import finished

    pipe, limits = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    join = ForkServerProcess.join

    def join_once_begun(process, seconds=None):
        """Its limit is over when the part has started a child, however long that took."""
        if seconds is None:
            return join(process)
        limits.append(seconds)
        assert select.select([reader], [], [], 300)[0]

    monkeypatch.setattr(ForkServerProcess, "join", join_once_begun)
    try:
        assert finished(_sleep_beside_a_child, (str(pipe),), 15.0) is None and limits == [15.0]
        child = int(os.read(reader, 100))
        ended = select.select([reader], [], [], 60)[0]  # both held the pipe, whose end comes with theirs
        if not ended:
            os.kill(child, signal.SIGKILL)
        assert ended and os.read(reader, 100) == b""
    finally:
        os.close(reader)


@pytest.mark.long
def test_a_part_starts_with_its_imports_done(suite_modules, monkeypatch):
    from _gpu.kit import packages
    from _gpu.run import finished

    server = forkserver.ForkServer()  # that of the process may be there already
    for name in ("set_forkserver_preload", "connect_to_new_process"):
        monkeypatch.setattr(forkserver, name, getattr(server, name))
    try:
        with packages(None):
            assert finished(exec, ("import sys; sys.exit(7 if '_gpu.steps' in sys.modules else 1)",), 60) == 7
    finally:
        server._stop()


def test_the_imports_of_the_parts_do_not_start_cudas_driver(suite_modules, monkeypatch):
    """A process that is forked after that has no GPU."""

    def asked(*_):
        raise AssertionError("an import asks for GPUs")

    for name in ("is_available", "device_count", "get_device_capability", "_lazy_init"):
        monkeypatch.setattr(torch.cuda, name, asked)
    for name, found in list(sys.modules.items()):
        if str(getattr(found, "__file__", None)).startswith(f"{SCRIPT.parent}{os.sep}"):
            monkeypatch.delitem(sys.modules, name)
    importlib.import_module("_gpu.run")


def _sleep_beside_a_child(pipe: str) -> None:
    os.setsid()
    with open(pipe, "w") as writer:
        child = subprocess.Popen(["sleep", "600"], stdout=writer)
        print(child.pid, file=writer, flush=True)
        time.sleep(600)


def test_a_kit_in_split_archives_is_joined_and_found(suite_modules, tmp_path, monkeypatch):
    from _gpu.kit import packages

    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "before")
    (tmp_path / "from_a_kit.py").write_text("number = 7\n")
    with tarfile.open(tmp_path / "small.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "from_a_kit.py", "from_a_kit.py")
    whole, kit = (tmp_path / "small.tar.xz").read_bytes(), tmp_path / "kit"
    kit.mkdir()
    for letter, part in zip("ab", (whole[:100], whole[100:]), strict=True):
        (kit / f"small.tar.xz.a{letter}").write_bytes(part)
    show = [sys.executable, "-c", "import from_a_kit; print(from_a_kit.number)"]
    with packages(kit):
        assert subprocess.run(show, capture_output=True, text=True, check=True).stdout == "7\n"


def test_a_kit_that_lacks_a_part_is_refused(suite_modules, tmp_path):
    from _command import BenchmarkError
    from _gpu.kit import packages

    (tmp_path / "dali.tar.xz.ab").write_bytes(b"the first part is missing")
    with pytest.raises(BenchmarkError, match=r"dali\.tar\.xz cannot be unpacked"), packages(tmp_path):
        pass


@pytest.mark.long
def test_the_gpu_tests_are_collected_without_what_an_offline_machine_lacks(command, tmp_path):
    """Optional packages and those of the developers."""
    missing = ("pycocotools", "ray", "moto", "s3fs", "fsspec", "matplotlib", "timm", "build", "nvidia.dali", "pyarrow")
    (tmp_path / "blocked.py").write_text(f"import sys\nsys.modules |= dict.fromkeys({missing})\n")
    line = (
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-p",
        "blocked",
        "-p",
        "no:cacheprovider",
        "--collect-only",
        ROOT / "tests",
    )
    done = command(sys.executable, *line, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert "test_kernels_on_the_gpu" in done.stdout and "error" not in done.stdout.lower()
