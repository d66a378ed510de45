"""Imports run one way: between the packages, between the folders inside them, and between files.

Counted is every import statement, at the top of a file, in a function, or under TYPE_CHECKING.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.floors import FLOORS, PACKAGES
from tests.support.imports import (
    Floors,
    circles_between_files,
    circles_between_folders,
    climbing,
    imported_names,
    read_imports,
)

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "shards": {"pipelines", "fastmoco", "benchmarks", "tests", "torch", "torchvision"},
    "pipelines": {"fastmoco", "benchmarks", "tests"},
    "fastmoco": {"benchmarks", "tests"},
    "benchmarks": {"tests"},
}


@pytest.fixture(scope="module")
def imports():
    found = read_imports(ROOT, PACKAGES, scripts=("benchmarks",))
    assert {each.source.parts[0] for each in found} == set(PACKAGES)
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_import_one_way(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"no Python files in {package}"
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for name, line in imported_names(path)
        if name.split(".")[0] in FORBIDDEN[package]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_circle_between_files(imports):
    circles = circles_between_files(imports)
    assert not circles, "\n".join(circles)


def test_no_circle_between_folders(imports):
    """At any level, where a folder and a module beside it are one node each."""
    circles = circles_between_folders(imports)
    assert not circles, "\n".join(circles)


@pytest.mark.parametrize("package", FLOORS)
def test_no_import_from_a_lower_floor_to_a_higher_one(imports, package):
    wrong = climbing(imports, package, FLOORS[package])
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", FLOORS)
def test_every_folder_has_its_floor(package):
    folders = {path.parent.relative_to(ROOT / package).parts[0] for path in (ROOT / package).glob("*/**/*.py")}
    assert folders == set(FLOORS[package].folders)


def made_up(root: Path, files: dict[str, str]):
    """Imports of a tree that is made up of these files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read_imports(root, [path.name for path in root.iterdir()], scripts=("scripts",))


def test_a_circle_between_files_is_found(tmp_path):
    imports = made_up(
        tmp_path,
        {
            "house/a.py": "import os\nfrom house.b import f\n",
            "house/b.py": "def f():\n    from house import c\n",
            "house/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.a\n",
            "house/d.py": "from house import a, b, c\n",
        },
    )
    (circle,) = circles_between_files(imports)
    assert circle == "house/a.py:2 imports house/b.py; house/b.py:2 imports house/c.py; house/c.py:3 imports house/a.py"


def test_a_circle_between_folders_is_found_though_no_files_form_one(tmp_path):
    imports = made_up(
        tmp_path,
        {
            "house/up/deep/a.py": "from house.down.b import f\n",
            "house/down/b.py": "f = 1\n",
            "house/down/c.py": "from house.up.deep.d import f\n",
            "house/up/deep/d.py": "f = 1\n",
        },
    )
    assert not circles_between_files(imports)
    (circle,) = circles_between_folders(imports)
    assert circle == (
        "in house/: house/down/c.py:1 imports house/up/deep/d.py; house/up/deep/a.py:1 imports house/down/b.py"
    )


def test_an_import_upwards_is_found(tmp_path):
    imports = made_up(
        tmp_path,
        {
            "house/base.py": "import house.face\n",
            "house/face.py": "from house.high import a\n",
            "house/low/b.py": "\n\ndef f():\n    from house.high.a import g\n",
            "house/high/a.py": "from house import base\n",
        },
    )
    floors = Floors.of(base="base", folders="low high")
    assert climbing(imports, "house", floors) == [
        "house/base.py:1 imports house/face.py: face is above base",
        "house/low/b.py:4 imports house/high/a.py: high is above low",
    ]


def test_scripts_import_each_other_by_their_bare_names(tmp_path):
    imports = made_up(
        tmp_path,
        {"scripts/a.py": "from _parts.b import f\n", "scripts/_parts/b.py": "import a\n"},
    )
    (circle,) = circles_between_files(imports)
    assert "scripts/a.py:1 imports scripts/_parts/b.py" in circle


def test_a_package_is_its_init_file(tmp_path):
    imports = made_up(
        tmp_path,
        {"house/__init__.py": "from house.a import f\n", "house/a.py": "from house import f\n"},
    )
    (circle,) = circles_between_files(imports)
    assert "house/a.py:1 imports house/__init__.py" in circle


def test_a_relative_import_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.py:1: relative import"):
        made_up(tmp_path, {"house/a.py": "from . import b\n"})
