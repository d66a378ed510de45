"""What tests of several scripts need."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


@pytest.fixture
def module(monkeypatch):
    """A module of benchmarks by its name."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    return importlib.import_module
