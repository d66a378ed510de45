"""The folder of the loops' machine code: another one for other sources, and not ever more of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pipelines
import shards
from pipelines.kernels.cache import SOURCES, folder_of


@pytest.fixture
def copies(tmp_path):
    """Copies of the folders with the sources."""
    found = [tmp_path / folder.parent.name / folder.name for folder in SOURCES]
    for folder, copy in zip(SOURCES, found, strict=True):
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return found


@pytest.mark.parametrize(
    "changed", ["shards/kernels/filtering.py", "shards/kernels/llvm.py", "shards/kernels/filters.py",
                "pipelines/kernels/vectors.py", "pipelines/kernels/bands.py"],
)  # fmt: skip
def test_a_changed_source_leads_to_another_folder(copies, tmp_path, changed):
    places = [tmp_path / "cache"]
    before = folder_of(copies, places)
    assert folder_of(copies, places) == before == folder_of(SOURCES, places)
    with open(tmp_path / changed, "a") as file:
        file.write("# changed\n")
    after = folder_of(copies, places)
    assert after != before and after is not None and after.parent == places[0]


def test_only_the_last_folders_used_are_kept(copies, tmp_path):
    place, folders = tmp_path / "cache", []
    other = place / "views.other"
    other.mkdir(parents=True)
    for number in range(7):
        (copies[0] / "vectors.py").write_text(f"{number}")
        folder = folder_of(copies, [place])
        assert folder is not None and (folder / "code.nbi").write_text("") == 0
        os.utime(folder, (number, number))
        folders.append(folder)
    (copies[0] / "vectors.py").write_text("3")  # used again, and so the newest
    assert folder_of(copies, [place]) == folders[3]
    assert {folder for folder in place.iterdir() if folder != other} == {folders[number] for number in (3, 4, 5, 6)}
    assert other.exists()


def test_a_place_that_cannot_be_written_to_is_passed_over(copies, tmp_path):
    (tmp_path / "file").write_text("")
    first, second = tmp_path / "file" / "below", tmp_path / "second"
    found = folder_of(copies, [first, second])
    assert found is not None and found.parent == second
    assert folder_of(copies, [first]) is None


@pytest.mark.long
def test_numba_writes_into_the_folder_and_reads_from_it(tmp_path):
    code = "from pipelines.kernels import bands; print(sum(bands.bands.stats.cache_hits.values()))"
    path = os.pathsep.join(str(Path(str(package.__file__)).parents[1]) for package in (pipelines, shards))
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": path}
    hits = [
        int(subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout)
        for _ in range(2)
    ]
    assert hits == [0, 1]
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("fastmoco-kernels-") and list(folder.rglob("bands.bands-*.nbi"))
