"""Charts: what they show, that they are the same each time, and that the committed ones are those of the rows."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

matplotlib = pytest.importorskip("matplotlib", reason="needs fastmoco[bench]")
FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))  # where a script's own folder is as well

from _charts import panels, svg  # noqa: E402
from render import committed, shown  # noqa: E402


@pytest.mark.parametrize("path", committed(), ids=lambda path: path.name)
def test_committed_tables_and_charts_are_those_of_the_rows(path):
    table, chart = shown(path, "small")
    assert path.with_suffix(".md").read_text() == table
    if chart is None:
        return
    kept, drawn = path.with_suffix(".svg").read_text(), svg(chart)
    if f"Matplotlib v{matplotlib.__version__}," in kept:  # other versions place some things otherwise
        assert kept == drawn
    assert words(kept) == words(drawn)


def words(picture: str) -> list[str]:
    texts = ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")
    return sorted("".join(text.itertext()) for text in texts)


def test_every_chart_in_results_can_be_drawn_again():
    assert {path.stem for path in FOLDER.glob("results/*.svg")} <= {path.stem for path in committed()}


def test_a_chart_is_the_same_each_time_and_holds_no_date():
    drawn = "from _charts import panels, svg\nwith panels(1, 3, 2) as (figure, (axes,)): axes.plot([1, 3], [2, 5])\n"
    line = [sys.executable, "-c", drawn + "print(svg(figure))"]
    first, second = (
        subprocess.run(line, cwd=FOLDER, capture_output=True, text=True, check=True).stdout for _ in range(2)
    )
    assert first == second and "<dc:date>" not in first


def test_text_is_dark_on_a_light_card():
    with panels(1, 3, 2) as (figure, (axes,)):
        axes.set_title("title")
    picture = svg(figure)
    assert re.search(r'id="patch_1">\s*<path [^>]*style="fill: #ffffff"', picture)
    assert "fill: #111827" in picture


def test_without_matplotlib_one_line_names_the_extra(in_process, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("_charts.find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    done = in_process(FOLDER / "render.py", check=False)
    assert done.returncode == 2 and "pip install 'fastmoco[bench]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_rows_of_something_else_are_refused(in_process):
    done = in_process(FOLDER / "render.py", FOLDER / "results" / "step.json", check=False)
    assert done.returncode == 2 and "rows of neither" in done.stderr
