from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fastmoco.ranks.endings import CompilerError, OutOfMemoryError, of_user
from fastmoco.ranks.world import DeviceError, world
from fastmoco.trainer.agreement import fingerprint

SCRIPT = Path(__file__).parent / "scripts" / "ranks.py"
FAULT = SCRIPT.with_name("fault.py")


def flags_of(shard_sets, folder):
    small = ["--recipe", "demo", "--image-size", "32", "--batch-size", "12", "--queue-size", "40", "--log-every", "1"]
    return [*small, "--shards", shard_sets / "train", "--out", folder / "run", "--steps", "8", "--threads", "1"]


@pytest.mark.distributed
def test_ranks_equal_one_process_with_as_many_groups_and_a_difference_between_them_is_found(torchrun):
    """Every mechanism and BatchNorm, gradients across ranks, batch statistics, and the hash."""
    assert torchrun(2, SCRIPT).stdout.strip() == "ok"


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [3, pytest.param(4, marks=pytest.mark.long)])
def test_a_resumed_run_sums_gradients_in_the_order_of_an_uninterrupted_one(torchrun, ranks):
    """Every mechanism, BatchNorm and precision. Two ranks would hide a change of order: the sum of two has only one."""
    lines = torchrun(ranks, SCRIPT.with_name("resume.py")).stdout.splitlines()
    assert len(lines) == 11 and all(line.startswith("0 of ") for line in lines), lines


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_rank_that_fails_ends_without_waiting_for_the_others(torchrun, ranks):
    """They never join the collective that it has begun; waiting for them would run into the time-out."""
    ended = torchrun(ranks, FAULT, "in-flight", check=False)
    assert ended.stderr == "fastmoco train (rank 1): No space left on device\n" and ended.returncode != 0


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("ranks", "kind", "said"),
    [
        (2, "full", "fastmoco train (rank 1): No space left on device\n"),
        (
            3,
            "memory",
            f"fastmoco train (rank 2): rank 2 on {os.uname().nodename} is out of memory: it asked for 4000 TB; give a "
            "smaller --batch-size or fewer --threads, to fastmoco train --accumulate 2 or more, or start fewer ranks "
            "on this machine\n",
        ),
    ],
)
def test_an_error_on_one_rank_ends_training_in_a_line(shard_sets, tmp_path, torchrun, ranks, kind, said):
    """It is the only error that is printed: those that lost the rank wait, and are ended meanwhile."""
    ended = torchrun(ranks, FAULT, kind, *flags_of(shard_sets, tmp_path), check=False)
    assert [line for line in ended.stderr.splitlines(keepends=True) if "fastmoco train" in line] == [said]
    assert ended.returncode != 0 and "Traceback" not in ended.stderr
    # it is of a function of the user's after step 3, so all ranks make that step's exchanges, and its state is saved
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000003.pt"]


@pytest.mark.parametrize(
    ("text", "place", "also"),
    [
        (
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 1 has a total capacity of 79.15 GiB of which 10.75 "
            "MiB is free. Including non-PyTorch memory, this process has 79.13 GiB memory in use.",
            "cuda:1 of rank",
            "it asked for 20.00 MiB (10.75 MiB of 79.15 GiB are free); give a smaller --batch-size",
        ),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "cuda:1 of rank", "nvidia-smi"),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "cuda:1 of rank", "nvidia-smi"),
        (
            "NCCL error in: ProcessGroupNCCL.cpp:77, unhandled cuda error, NCCL version 2.30.7\n"
            "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'",
            "cuda:1 of rank",
            "nvidia-smi",
        ),
        ("NCCL error: unhandled cuda error, Cuda failure 2 'out of memory'", "cuda:1 of rank", "nvidia-smi"),
        (
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 4000000000000000 bytes. Error code 12 (Cannot allocate memory)",
            "rank 0 on",
            "it asked for 4000 TB; give a smaller --batch-size or fewer --threads",
        ),
    ],
)
def test_memory_that_is_full_is_the_gpus_or_the_hosts(text, place, also):
    said = of_user(RuntimeError(text), torch.device("cuda", 1))
    assert isinstance(said, OutOfMemoryError) and str(said).startswith(place) and also in str(said), said


@pytest.mark.parametrize(
    ("visible", "said"),
    [
        (None, "this node has 2; start torchrun with --nproc-per-node 2"),
        (
            "GPU-4f2a,GPU-9c31",
            "CUDA_VISIBLE_DEVICES is 'GPU-4f2a,GPU-9c31'; start torchrun with --nproc-per-node 2, or show the GPUs of "
            "all of the node's ranks to each of them",
        ),
    ],
)
def test_a_rank_without_a_gpu_is_told_how_many_there_are_or_are_shown(monkeypatch, visible, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(DeviceError) as raised, world():
        pass
    assert str(raised.value) == f"local rank 3 has no GPU: {said}"


@pytest.mark.parametrize("compiler", [None, "false"])
def test_triton_without_a_compiler_says_what_to_install(monkeypatch, tmp_path, compiler):
    """As where there is none, and where it finds no header of Python's."""
    triton = pytest.importorskip("triton")
    from triton.runtime.build import compile_module_from_file

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    if compiler:
        monkeypatch.setenv("CC", compiler)
    launcher = Path(triton.__file__).parent / "backends" / "nvidia" / "driver.c"
    with pytest.raises((RuntimeError, subprocess.CalledProcessError)) as raised:
        compile_module_from_file(str(launcher), "cuda_utils")
    said = of_user(raised.value, torch.device("cuda", 1))
    assert isinstance(said, CompilerError) and "; install gcc and Python's headers (python3-dev), or" in str(said)


@pytest.mark.distributed
def test_a_defect_of_one_rank_is_its_traceback_alone(torchrun):
    ended = torchrun(2, FAULT, "defect", check=False)
    assert ended.stderr.count("Traceback") == 1 and ended.stderr.endswith("\nAssertionError: two and two\n")


@pytest.mark.distributed
def test_a_set_that_is_damaged_on_one_node_is_named_by_its_rank(shard_sets, tmp_path, torchrun):
    """All others wait for it: it prints what otherwise rank 0 would."""
    shutil.copytree(shard_sets / "train", tmp_path / "set")
    (tmp_path / "set" / "manifest.json").write_text("{}")
    ended = torchrun(3, FAULT, "set", tmp_path / "set", check=False)
    assert ended.stderr.startswith(f"fastmoco train (rank 2): {tmp_path}/set") and ended.stderr.count("\n") == 1
    assert ended.returncode != 0


@pytest.mark.distributed
def test_ranks_whose_peer_is_gone_say_so_in_a_line(shard_sets, tmp_path, torchrun):
    ended = torchrun(3, FAULT, "gone", *flags_of(shard_sets, tmp_path), check=False)
    assert "fastmoco train: lost the connection to another rank" in ended.stderr
    assert ended.returncode == 1 and "Traceback" not in ended.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8])
def test_a_fingerprint_changes_with_any_element_and_with_the_order(dtype):
    tensor = torch.arange(60).reshape(2, 3, 2, 5).to(dtype)
    seen = {fingerprint(tensor).item()}
    for place in range(60):
        changed = tensor.clone()
        changed.view(-1)[place] += 1
        seen.add(fingerprint(changed).item())
    assert len(seen) == 61
    assert fingerprint(tensor.flip(0)).item() not in seen
    channels_last = tensor.contiguous(memory_format=torch.channels_last)
    assert fingerprint(channels_last) == fingerprint(tensor.clone())


def test_long_tensors_are_hashed_in_parts_as_one():
    long = torch.arange((1 << 22) + 7, dtype=torch.int32)
    swapped = long.clone()
    swapped[[3, -1]] = long[[-1, 3]]
    assert fingerprint(long) != fingerprint(swapped)


@pytest.mark.distributed
def test_rank_0_chooses_the_checkpoint_and_all_agree_on_its_bytes(tmp_path, torchrun):
    done = torchrun(2, SCRIPT.with_name("chosen.py"), tmp_path)
    assert done.stdout.strip() == "ok"
    assert "step-00000008.pt does not hold the state of a whole run (KeyError: 'value')" in done.stderr
    assert "step-00000010.unsure.pt and later are not used: they were written after the ranks last" in done.stderr


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"WORLD_SIZE": "2"},
            "WORLD_SIZE is 2 in the environment, without RANK, MASTER_ADDR, MASTER_PORT; start",
        ),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two' in the environment, which is no number; start several ranks by"),
        ({"RANK": "1"}, "RANK is 1 in the environment, and WORLD_SIZE 1; start several ranks by torchrun, or, for one"),
    ],
)
@pytest.mark.parametrize("flag", [[], ["--dry-run"]])
def test_variables_of_ranks_that_no_launcher_started_are_named(
    in_process, monkeypatch, shard_sets, tmp_path, variables, said, flag
):
    """As a shell or a job script leaves them over. Training ended in a traceback, or said nothing as rank 1 of one."""
    monkeypatch.setattr("shards.command.PATIENCE", 0)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = in_process("-m", "fastmoco.train", *flags_of(shard_sets, tmp_path), *flag, check=False)
    assert said in done.stderr and done.stderr.endswith(f"for one process: unset {next(iter(variables))}\n")
    assert done.returncode == 2 and not done.stdout and not list(tmp_path.iterdir())
