"""docs/architecture.md is true: its diagram has the arrows of the imports, and its tables name every room."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest

from tests.support.floors import PACKAGES
from tests.support.imports import Floors, Import
from tests.support.rooms import PAGE, ROOT, arrows_between_rooms, arrows_in, arrows_of_the_code, diagram


def test_the_diagram_has_the_arrows_of_the_imports():
    drawn, arrows = arrows_in(PAGE.read_text(encoding="utf-8")), arrows_of_the_code()
    assert drawn == arrows, (
        f"not drawn: {arrows - drawn}; not so: {drawn - arrows}; python -m tests.support.rooms mends it"
    )


@pytest.mark.parametrize("package", [package for package in PACKAGES if package != "benchmarks"])
def test_each_folder_and_each_module_beside_the_folders_is_named(package):
    page = PAGE.read_text(encoding="utf-8")
    section = re.split(r"^### ", page, flags=re.M)
    (text,) = [part for part in section if part.startswith(f"{package}:")]
    names = {f"{path.name}/" for path in (ROOT / package).iterdir() if (path / "__init__.py").exists()}
    names |= {path.stem for path in (ROOT / package).glob("*.py") if path.stem != "__init__"}
    missing = sorted(name for name in names if f"`{name}`" not in text)
    assert not missing, f"{PAGE.name} does not say what these are: {missing}"


def test_an_arrow_that_follows_from_others_is_left_out():
    def arrow(source, target):
        return Import(PurePosixPath(source), PurePosixPath(target), 1)

    floors = {"house": Floors.of(base="cellar", folders="ground first")}
    imports = [
        arrow("house/roof.py", "house/first/a.py"),
        arrow("house/roof.py", "house/ground/b.py"),
        arrow("house/first/a.py", "house/ground/b.py"),
        arrow("house/ground/b.py", "house/cellar.py"),
        arrow("house/ground/b.py", "house/ground/c.py"),
    ]
    arrows = arrows_between_rooms(imports, floors)
    assert arrows == {("house top", "house/first"), ("house/first", "house/ground"), ("house/ground", "house base")}
    assert arrows_in(diagram(arrows)) == arrows
