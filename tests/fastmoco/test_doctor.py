"""The doctor: each judgment in its words, and one real examination of this machine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastmoco.doctor import disk, gpus, loading, machine, packages
from fastmoco.doctor.findings import Finding
from fastmoco.doctor.gpus import Gpu, of_dali, of_driver, of_gpu
from fastmoco.doctor.packages import package

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30
ON_CPU = "training runs on the CPU"
DRIVER = "with an NVIDIA GPU, install its driver"


@pytest.mark.parametrize(
    ("arguments", "level", "text", "remedy"),
    [
        # version of the driver, its GPUs, torch's GPUs, CUDA of torch, CUDA_VISIBLE_DEVICES
        ((None, 0, 0, "13.0", None), "note", f"no NVIDIA driver; torch is built for CUDA 13.0: {ON_CPU}", DRIVER),
        ((None, 0, 0, None, None), "note", f"no NVIDIA driver; torch is built without CUDA: {ON_CPU}", DRIVER),
        (
            (None, 0, 2, "13.0", None),
            "note",
            "of unknown version, 2 GPUs; torch is built for CUDA 13.0",
            "to see the version, install libnvidia-ml, a part of NVIDIA's driver",
        ),
        (("580.65.06", 8, 8, "13.0", None), "ok", "580.65.06; torch is built for CUDA 13.0", ""),
        (
            ("535.183.01", 8, 0, "13.0", None),
            "warn",
            f"535.183.01; torch is built for CUDA 13.0, which needs a driver from 580.65.06 on: {ON_CPU}",
            "update the driver, or install torch for CUDA 12",
        ),
        (("535.183.01", 8, 8, "12.8", None), "ok", "535.183.01; torch is built for CUDA 12.8", ""),
        (
            ("580.65.06", 2, 0, None, None),
            "warn",
            f"580.65.06 with 2 GPUs, but this torch is built without CUDA: {ON_CPU}",
            "install torch with CUDA (pytorch.org/get-started)",
        ),
        (
            ("580.65.06", 1, 0, "13.0", ""),
            "warn",
            f"it has 1 GPU, torch sees none; CUDA_VISIBLE_DEVICES is '': {ON_CPU}",
            "unset CUDA_VISIBLE_DEVICES",
        ),
        (("580.65.06", 0, 0, "13.0", None), "note", f"no GPU: {ON_CPU}", "in a container, start it with --gpus all"),
    ],
)
def test_the_driver(arguments, level, text, remedy):
    found = of_driver(*arguments)
    assert (found.level, found.remedy) == (level, remedy) and found.text.endswith(text)


BUILT = ("sm_75", "sm_80", "sm_90", "sm_120")


@pytest.mark.parametrize(
    ("capability", "built", "level"),
    [
        ((9, 0), BUILT, "ok"),
        ((8, 6), BUILT, "ok"),  # machine code of sm_80 runs on later GPUs of version 8
        ((7, 0), BUILT, "stop"),
        ((10, 0), BUILT, "stop"),
        ((10, 0), (*BUILT, "compute_90"), "ok"),  # compiled on demand
        ((9, 0), ("sm_90a",), "ok"),
        ((9, 0), (), "ok"),
    ],
)
def test_a_gpu_for_which_torch_has_no_code_stops_training(capability, built, level):
    found = of_gpu(1, Gpu("NVIDIA X", 80 * GIB, capability), built)
    major, minor = capability
    assert found.topic == "GPU 1" and found.level == level
    assert found.text.startswith(f"NVIDIA X, 80.0 GiB, compute capability {major}.{minor}")
    assert level == "ok" or "torch has no code (it has sm_75 sm_80 sm_90 sm_120)" in found.text


RIGHT, OLD = "nvidia-dali-cuda130 2.4.0", "nvidia-dali-cuda120 1.52.0"


@pytest.mark.parametrize(
    ("installed", "built", "driver", "gpu", "problem", "level", "text", "remedy"),
    [
        ([], "13.0", None, False, None, "ok", "not installed; without a GPU torch decodes faster", ""),
        ([], "12.8", "560.1", True, None, "warn", "the CPU decodes, not the GPU", "pip install nvidia-dali-cuda120"),
        ([RIGHT], "13.0", "580.65.06", True, None, "ok", f"{RIGHT}, as torch for CUDA 13", ""),
        ([RIGHT], "13.0", None, False, None, "ok", f"{RIGHT}, as torch for CUDA 13", ""),
        ([RIGHT], None, None, False, None, "ok", RIGHT, ""),
        (
            [OLD], "13.0", "580.65.06", True, None, "warn", f"{OLD}, but torch is built for CUDA 13.0",
            "pip uninstall nvidia-dali-cuda120; pip install nvidia-dali-cuda130",
        ),
        (
            [OLD, RIGHT], "13.0", "580.65.06", True, None, "warn", "they overwrite each other's files",
            "pip uninstall nvidia-dali-cuda120; pip install nvidia-dali-cuda130",
        ),
        (
            [RIGHT], "13.0", "570.86.10", True, None, "warn", f"{RIGHT}, which needs a driver from 580.65.06 on",
            "update the driver",
        ),
        (
            [RIGHT], "13.0", "535.183.01", False, None, "note", f"{RIGHT}, which needs a driver from 580.65.06 on",
            "update the driver",
        ),
        (
            [RIGHT], "13.0", "580.65.06", True, "nvJPEG cannot be loaded (no file): pip install nvidia-nvjpeg", "warn",
            f"{RIGHT}: nvJPEG cannot be loaded (no file)", "pip install nvidia-nvjpeg",
        ),
    ],
)  # fmt: skip
def test_dali(installed, built, driver, gpu, problem, level, text, remedy):
    found = of_dali(installed, built, driver, gpu, problem)
    assert (found.level, found.remedy) == (level, remedy) and found.text.endswith(text)


def test_precision():
    assert gpus.precision("bf16", gpu=True).text == "bf16 in hardware (GPU); --precision auto takes it"
    assert gpus.precision("fp16", gpu=True).text == "the GPU has no bf16 in hardware; --precision auto takes fp16"
    assert "no bf16 in hardware (AMX); --precision auto takes fp32" in gpus.precision("fp32", gpu=False).text


@pytest.mark.parametrize(
    ("found", "level", "text", "remedy"),
    [
        (machine.cores(64, 64, None, 1.0), "ok", "64", ""),
        (machine.cores(64, 8, None, 1.0), "ok", "8 usable of 64", ""),
        (machine.cores(64, 64, 3.5, 1.0), "warn", "64, but the container may use 3.5", "fastmoco train --threads 3,"),
        (machine.cores(64, 64, 0.5, 1.0), "warn", "may use 0.5", "--threads 1,"),
        (machine.cores(2, 2, None, 9.7), "note", "2, but 10 processes want to run", "measure again"),
        (machine.memory(64 * GIB, 60 * GIB, None), "ok", "60.0 GiB available of 64.0 GiB", ""),
        (machine.memory(64 * GIB, 60 * GIB, 2 * GIB), "warn", "the container may use 2.0 GiB", "a smaller --arch"),
        (machine.memory(4 * GIB, 2 * GIB, 8 * GIB), "warn", "2.0 GiB available of 4.0 GiB", "a smaller --arch"),
        (machine.shared_memory(None), "warn", "missing; packing with several workers", "mount -t tmpfs tmpfs /dev/shm"),
        (machine.shared_memory(64 << 20), "warn", "0.1 GiB free, too little", "--shm-size 8g, or --ipc=host"),
        (machine.shared_memory(8 * GIB), "ok", "8.0 GiB free", ""),
        (machine.open_files(256, 4096), "warn", "at most 256", "ulimit -n 1024"),
        (machine.open_files(256, 512), "warn", "at most 256", "ask the administrator"),
        (machine.open_files(-1, -1), "ok", "unlimited", ""),
        (packages.python((3, 9, 1)), "stop", "3.9.1", "use Python 3.10 or later"),
        (package("torch", None, "2.9", None), "stop", "not installed", "pip install 'torch>=2.9'"),
        (package("torch", "2.8.1+cu128", "2.9", None), "stop", "2.8.1+cu128, older than 2.9", "-U 'torch>=2.9'"),
        (package("torch", "2.10.0", "2.9", None), "ok", "2.10.0", ""),
        (package("numba", "0.60", "0.60", "ImportError: no"), "stop", "cannot be imported (ImportError: no)", "pip"),
        (packages.of_extra("s3", "URLs", "s3fs", False), "note", "not installed, needed for URLs", "pip install s3fs"),
        (packages.of_extra("s3", "URLs", "s3fs", True), "ok", "installed (URLs)", ""),
    ],
)  # fmt: skip
def test_the_machine_and_the_packages(found, level, text, remedy):
    assert found.level == level and text in found.text and remedy in found.remedy
    assert bool(found.remedy) == (level != "ok")


def test_credentials_are_found_and_never_shown(tmp_path):
    assert packages.credentials({}, tmp_path).level == "note"
    found = packages.credentials({"AWS_ACCESS_KEY_ID": "hidden"}, tmp_path)
    assert found == Finding("S3 access", "configured by AWS_ACCESS_KEY_ID; not tried")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text("aws_secret_access_key = hidden\n")
    assert packages.credentials({}, tmp_path).text == "configured by ~/.aws/credentials; not tried"


@pytest.mark.parametrize(
    ("files", "quota", "limit"),
    [
        ({"proc/self/cgroup": "0::/\n"}, None, None),
        # version 2: the strictest of the group and its parents
        (
            {
                "proc/self/cgroup": "0::/job/step\n", "sys/fs/cgroup/job/step/cpu.max": "max 100000\n",
                "sys/fs/cgroup/job/cpu.max": "350000 100000\n", "sys/fs/cgroup/job/memory.max": "8589934592\n",
                "sys/fs/cgroup/job/step/memory.max": "max\n",
            },
            3.5, 8 * GIB,
        ),
        # version 1
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/b\n0::/\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "200000\n", "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/b/memory.limit_in_bytes": "4294967296\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            2.0, 4 * GIB,
        ),
        # in a container: the path is the host's, and not there
        ({"proc/self/cgroup": "0::/docker/1234\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5, None),
        ({}, None, None),
    ],
)  # fmt: skip
def test_the_limits_of_control_groups(tmp_path, files, quota, limit):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert (machine.cpu_quota(tmp_path), machine.memory_limit(tmp_path)) == (quota, limit)


def test_a_disk_slower_than_the_decoder_is_pointed_out():
    slow, fast = disk.Rates(1e8, 1e8, 500 * disk.IMAGE, False), disk.Rates(1e8, 2e8, 9000 * disk.IMAGE, False)
    found = disk.of_rates(Path("data"), 50 * GIB, slow, 800.0)
    assert found.level == "warn" and "500 images/s of 128 KiB, fewer than the 800 that are decoded" in found.text
    assert found.remedy == "put the shards on a local disk, or pack with --resize to make them smaller"
    found = disk.of_rates(Path("data"), 50 * GIB, fast, 800.0)
    assert found.text == "data: 50.0 GiB free, writes 100 MB/s, reads 200 MB/s, at random 9,000 images/s of 128 KiB"
    # from memory a rate says nothing about the disk
    cached = disk.of_rates(Path("data"), 50 * GIB, disk.Rates(1e8, 1e8, 500 * disk.IMAGE, True), 800.0)
    assert cached.level == "ok" and cached.text.endswith("(from memory, not from a disk)")
    assert disk.of_rates(Path("data"), GIB, None, None).level == "warn"


def test_the_disk_is_measured_and_left_as_it_was(tmp_path):
    measured = disk.rates(tmp_path, limit=16 << 20)
    assert min(measured.write, measured.read, measured.random_read) > 0
    assert not list(tmp_path.iterdir())
    assert disk.disk(tmp_path / "nowhere", None).level == "stop"
    if Path("/proc/self").exists():
        found = disk.disk(Path("/proc"), None)  # not even root can write there
        assert (found.level, found.text.partition(" (")[0]) == ("stop", "/proc cannot be written")


def test_a_file_system_in_memory_is_no_disk(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text("a / ext4 rw 0 0\nb /data nfs rw 0 0\nc /data/fast ext4 rw 0 0\nd /data/fast tmpfs rw 0 0\n")
    for place, kind in (("/data/fast/set", "tmpfs"), ("/data/faster", "nfs"), ("/home", "ext4")):
        assert disk.file_system(Path(place), mounts) == kind
    assert disk.file_system(tmp_path, tmp_path / "none") == ""


def test_the_extras_are_those_of_the_package():
    text = (ROOT / "pyproject.toml").read_text()
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = ", section, re.MULTILINE))
    # DALI has a line of its own, and the others are for working on fastmoco
    assert set(packages.EXTRAS) == extras - {"cuda12", "cuda13", "bench", "dev", "docs"}


@pytest.fixture
def brief(monkeypatch):
    """Few images, short measurements."""
    monkeypatch.setattr(loading, "IMAGES", 8)
    monkeypatch.setattr(loading, "BATCH", 4)
    monkeypatch.setattr(loading, "SECONDS", 0.01)
    monkeypatch.setattr(disk, "SECONDS", 0.01)


def test_this_machine_can_train(in_process, tmp_path, brief):
    done = in_process("-m", "fastmoco.__main__", "doctor", "--json", "doctor.json")
    result = json.loads((tmp_path / "doctor.json").read_text())
    assert result["can_train"] and done.stdout.splitlines()[-1].startswith("training can run")
    topics = [found["topic"] for found in result["findings"]]
    assert {"Python", "torch", "numba", "cores", "memory", "driver", "DALI", "precision", "data", "disk"} <= set(topics)
    assert all(found["remedy"] for found in result["findings"] if found["level"] != "ok")
    lines = done.stdout.splitlines()[:-1]
    assert len(lines) == len(topics) and all(topic in line for topic, line in zip(topics, lines, strict=True))
    (data,) = [found["text"] for found in result["findings"] if found["topic"] == "data"]
    rate = re.match(r"(torch|dali-gpu|dali-cpu), ([\d,]+) images/s on \d+ threads .*; chosen because ", data)
    assert rate is not None and int(rate[2].replace(",", "")) > 0


NO_HEADER = subprocess.CalledProcessError(1, ["gcc", "/venv/triton/backends/nvidia/driver.c", "-O3"])


@pytest.mark.parametrize(
    ("error", "backend", "said", "remedy"),
    [
        (RuntimeError("a"), "torch", "a", "mend the lines above"),
        (RuntimeError("a"), "dali", "a", "mend the lines above, or give fastmoco train --pipeline torch"),
        (
            NO_HEADER,
            "dali",
            "Triton, .* cannot compile .* install gcc and Python's headers .*",
            "do as this message says",
        ),
    ],
)
def test_a_loader_that_fails_has_a_remedy_that_is_another_way(monkeypatch, error, backend, said, remedy):
    """The torch backend is none where it has failed itself, or where its colours need what is missing."""

    def measure(folder, device):
        raise error

    monkeypatch.setattr(loading, "measure", measure)
    monkeypatch.setattr("pipelines.choice.choose", lambda name, device: (backend, "as requested"))
    found, rate = loading.loading()
    assert (found.level, found.remedy, rate) == ("stop", remedy, None)
    assert re.fullmatch(rf"{backend} \(as requested\) fails: {said}", found.text)


def test_a_package_that_cannot_be_imported_stops_training(in_process, tmp_path, brief, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    done = in_process("-m", "fastmoco.__main__", "doctor", "--json", "-", check=False)
    result = json.loads(done.stdout)
    stops = {found["topic"] for found in result["findings"] if found["level"] == "stop"}
    assert done.returncode == 1 and not result["can_train"] and stops == {"numba"}
    assert not [found for found in result["findings"] if found["topic"] == "data"]  # it needs numba


def test_a_folder_that_does_not_exist_is_refused(in_process):
    done = in_process("-m", "fastmoco.__main__", "doctor", "--dir", "nowhere", check=False)
    assert done.returncode == 2
    assert done.stderr == "fastmoco doctor: --dir nowhere is not a folder; give an existing one\n"
