"""The page "Why you can trust it" names tests that exist, and calls exact what a test demands to the bit."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.trust import CLAIMS, ROOT, as_markdown, function

ALL = [claim for claims in CLAIMS.values() for claim in claims]


@pytest.mark.parametrize("claim", ALL, ids=lambda claim: claim.node)
def test_a_claim_has_a_test_and_that_tests_tolerance(claim):
    assert function(*claim.node.split("::")), "no such test"
    assert claim.exact == (claim.tolerances() == ["exact"])


def test_a_reader_of_the_repository_prints_the_tables_that_the_site_has():
    """The page itself has a mark in their place."""
    printed = subprocess.run(
        [sys.executable, "-m", "tests.trust"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert printed.stdout == as_markdown() + "\n"


def test_the_table_gives_tolerances_as_the_tests_have_them():
    cells = [row.split("|") for row in as_markdown().splitlines() if "::" in row]
    rows = {test.strip(" `"): tolerance.strip() for _, _, tolerance, test, _ in cells}
    assert rows["tests/pipelines/test_views.py::test_a_view_is_torchvisions_crop_resize_blur_and_flip"] == "≤ 0.52"
    assert rows["tests/fastmoco/test_train.py::test_a_killed_run_continues_bit_for_bit"] == "exact"
