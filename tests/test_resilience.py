"""The page "What happens when…" names tests that exist, and every row has one."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from tests.trust import ROOT, function

PAGE = "docs/resilience.md"
COLUMNS = ["when", "what happens", "bound", "exit code", "lost", "test"]


class Row(NamedTuple):
    when: str
    cells: list[str]


def rows(text: str) -> list[Row]:
    """The rows of all tables, without their heads."""
    found = [
        [cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"
    ]
    return [Row(cells[0], cells) for cells in found if cells[0] not in ("when", "---")]


ROWS = rows((ROOT / PAGE).read_text(encoding="utf-8"))
CASES = {row.when: row for row in ROWS}


def test_each_fault_has_one_row():
    assert len(CASES) == len(ROWS) > 20


@pytest.mark.parametrize("when", CASES)
def test_a_row_is_complete_and_its_tests_exist(when):
    """A cell may be empty where there is nothing to say, but for what happens and the test."""
    cells = CASES[when].cells
    assert len(cells) == len(COLUMNS), f"{PAGE}: {cells}"
    assert cells[1], "says nothing"
    tests = re.findall(r"`(tests/\S+\.py)::(\w+)`", cells[-1])
    assert tests, "names no test"
    for file, name in tests:
        assert function(file, name), f"no test {file}::{name}"
