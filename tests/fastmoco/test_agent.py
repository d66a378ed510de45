"""A rank ends with torchrun's agent: real processes, without torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastmoco._agent import _is_orphan

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
ROOT = Path(__file__).resolve().parents[2]
RANK = "import os, time, fastmoco; print(os.getpid(), flush=True); time.sleep(600)"
AGENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {RANK!r}], start_new_session=True)"
SIGNAL_AT_PARENTS_END = (
    "import ctypes, fastmoco; n = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(n)); print(n.value)"
)


def start(script, **environment):
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, text=True)


def test_a_rank_ends_when_its_agent_is_killed():
    agent = start(AGENT, TORCHELASTIC_RUN_ID="run")
    assert agent.stdout
    rank = int(agent.stdout.readline())
    agent.kill()
    try:
        # the rank holds the pipe, too, whose end comes with its own
        assert agent.communicate(timeout=60)[0] == ""
    except subprocess.TimeoutExpired:
        os.kill(rank, signal.SIGKILL)
        raise


def test_processes_that_torchrun_has_not_started_outlive_their_parent():
    plain = start(SIGNAL_AT_PARENTS_END)
    of_a_rank = start(SIGNAL_AT_PARENTS_END, TORCHELASTIC_RUN_ID="run", _FASTMOCO_RANK="1")
    assert [process.communicate(timeout=60)[0] for process in (plain, of_a_rank)] == ["0\n", "0\n"]


def test_a_rank_notices_that_its_agent_has_ended_before():
    """Whoever adopts it is no Python, and torchrun has not started it."""
    environments = {"adopts": {}, "a script of torchrun's": {"TORCHELASTIC_RUN_ID": "run"}}
    parents = [
        subprocess.Popen("cat", env={**os.environ, **env}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for env in environments.values()
    ]
    try:
        for parent in parents:  # Popen returns while the kernel still lays out the environment: wait for an answer
            assert parent.stdin and parent.stdout
            print("running", file=parent.stdin, flush=True)
            assert parent.stdout.readline() == "running\n"
        assert [_is_orphan(parent.pid) for parent in parents] == [True, False]
    finally:
        for parent in parents:
            parent.kill()
            parent.communicate()
    assert not _is_orphan(os.getpid())
