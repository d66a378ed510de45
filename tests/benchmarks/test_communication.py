"""The communication benchmark at a small size: a rank receives the same with any number of ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.distributed
def test_a_rank_receives_as_many_bytes_from_two_as_from_four_where_the_originals_grow(command, tmp_path):
    script = REPOSITORY / "benchmarks" / "communication.py"
    small = ["--ranks", 2, 4, "--batch", 3, "--image-size", 20, "--repeats", 1]
    command(sys.executable, script, *small, "--json", "rows.json")
    result = json.loads((tmp_path / "rows.json").read_text())
    images = {(row["way"], row["ranks"]): row["images"] for row in result["measured"]}
    sent = 3 * 3 * 20 * 20
    assert images["bf16", 2] == images["bf16", 4] == sent * 2
    assert images["fp32", 2] == images["fp32", 4] == sent * 4
    assert (images["original", 2], images["original", 4]) == (2 * sent * 4, 4 * sent * 4)
    formula = {(row["way"], row["ranks"]): row for row in result["formula"]}
    assert formula["fp32", 1024]["images"] == sent * 4 and formula["original", 1024]["images"] == 1024 * sent * 4
    for row in result["measured"]:
        assert formula[row["way"], row["ranks"]].items() <= row.items() and row["ms"] > 0
    assert "all-gather, float32" in (tmp_path / "rows.md").read_text()
    circles = ElementTree.parse(tmp_path / "rows.svg").findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == len(result["measured"]) == 6


def test_the_table_and_the_chart_are_those_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    from _communication.show import chart, markdown

    results = REPOSITORY / "benchmarks" / "results"
    result = json.loads((results / "communication.json").read_text())
    assert (results / "communication.md").read_text() == markdown(result)
    assert (results / "communication.svg").read_text() == chart(result)
