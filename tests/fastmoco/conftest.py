from __future__ import annotations

import importlib
import logging
import sys

import pytest
import torch


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command of the package in this process, which saves its start: its exit code, what it said, and its log."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"fastmoco.{name}", *map(str, arguments)])
        code = 0
        try:
            importlib.import_module(f"fastmoco.{name}").main()
        except SystemExit as ended:
            code = ended.code
        finally:
            root.handlers[:] = before
            root.setLevel(level)
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


@pytest.fixture(scope="module")
def one_thread():
    """One thread of torch, as under torchrun: their number is part of what makes two runs equal."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
