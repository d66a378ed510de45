from __future__ import annotations

import pytest
import torch


@pytest.fixture
def call(in_process):
    """Run a command of the package in this process: its exit code, what it printed, and its log."""

    def run(name, *arguments):
        done = in_process("-m", f"fastmoco.{name}", *arguments, check=False)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture(scope="module")
def one_thread():
    """One thread of torch, as under torchrun: their number is part of what makes two runs equal."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
