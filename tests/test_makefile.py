"""What `make` sets up and removes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def make(folder: Path, *arguments: str) -> str:
    """Run make in a folder that holds a copy of the Makefile; returns what it printed."""
    if not (folder / "Makefile").exists():
        shutil.copy(ROOT / "Makefile", folder)
        (folder / "pyproject.toml").touch()
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_the_demo_installs_what_it_needs_alone_and_shows_it(tmp_path):
    printed = make(tmp_path, "-n", "demo", "ARGS=--overwrite")
    assert re.findall(r"pip install (.*)", printed) == ["-e ."]  # without -q, which hides pip's progress
    assert "fastmoco demo --overwrite" in printed and "Setting up .venv" in printed
    installed = re.findall(r"pip install (.*)", make(tmp_path, "-n", "test"))
    assert installed[0] == "-e '.[dev]'" and "nvidia-dali-cuda" in installed[1]


def test_what_is_set_up_for_the_tests_is_enough_for_the_demo(tmp_path):
    (tmp_path / ".venv").mkdir()
    printed = make(tmp_path, "-n", "test")
    for stamp in re.search(r"^touch (.*)$", printed, re.MULTILINE)[1].split():
        (tmp_path / stamp).touch()
    assert "pip" not in make(tmp_path, "-n", "demo") and "pip" not in make(tmp_path, "-n", "test")


def test_clean_removes_neither_runs_nor_the_virtual_environment(tmp_path):
    kept = ["runs/demo/report.html", "runs/r50/checkpoints/step-00000100.pt", ".venv/bin/python", "shards/mine.tar",
            "data/photo.jpg", "notes.txt"]  # fmt: skip
    for name in [*kept, "build/lib.py", "dist/wheel", "pipelines/kernels/__pycache__/code.nbi"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    make(tmp_path, "clean")
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*kept, "Makefile", "pyproject.toml"}
