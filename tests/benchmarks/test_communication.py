"""The communication benchmark at a small size: a rank receives the same bytes with any number of ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.distributed
@pytest.mark.long
def test_a_rank_receives_as_many_bytes_from_two_as_from_four_where_the_originals_grow(command, tmp_path):
    script = REPOSITORY / "benchmarks" / "communication.py"
    small = ["--ranks", 2, 4, "--batch", 3, "--image-size", 128, "--repeats", 1]
    command(sys.executable, script, *small, "--json", "rows.json")
    result = json.loads((tmp_path / "rows.json").read_text())
    images = {(row["way"], row["ranks"]): row["images"] for row in result["measured"]}
    sent = 3 * 3 * 128 * 128  # as many pixels as a feature has dimensions: they must not count as features
    assert images["bf16", 2] == images["bf16", 4] == sent * 2
    assert images["fp32", 2] == images["fp32", 4] == sent * 4
    assert (images["original", 2], images["original", 4]) == (2 * sent * 4, 4 * sent * 4)
    formula = {(row["way"], row["ranks"]): row for row in result["formula"]}
    assert formula["fp32", 1024]["images"] == sent * 4 and formula["original", 1024]["images"] == 1024 * sent * 4
    for row in result["measured"]:
        assert formula[row["way"], row["ranks"]].items() <= row.items() and row["ms"] > 0
    assert "all-gather, float32" in (tmp_path / "rows.md").read_text()
    assert "all-gather, float32" in (tmp_path / "rows.svg").read_text()
    assert len(result["measured"]) == 6


def test_a_chart_has_a_line_by_the_formula_and_dots_of_what_was_counted(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    from _communication.show import WAYS, chart

    result = json.loads((REPOSITORY / "benchmarks" / "results" / "communication.json").read_text())
    (axes,) = chart(result).axes
    for place, name in enumerate(WAYS):
        of_way = axes.lines[2 * place : 2 * place + 2]
        for line, rows in zip(of_way, (result["formula"], result["measured"]), strict=True):
            expected = [row for row in rows if row["way"] == name]
            sums = [(row["images"] + row["index"] + row["features"]) / 1e6 for row in expected]
            assert line.get_xdata().tolist() == [row["ranks"] for row in expected] and line.get_ydata().tolist() == sums
