"""Views from a file: what it may hold, and what is said of what it may not."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from pipelines import PipelineError, ViewPair, ViewSpec
from pipelines.views_file import NUMBERS, differences, of_tables, read, recorded

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "views.md"


def _read(tmp_path, text):
    (tmp_path / "views.toml").write_text(text)
    return read(tmp_path / "views.toml")


def test_numbers_of_both_views_and_of_one_begin_from_a_base(tmp_path):
    pair = _read(tmp_path, 'base = "v3"\narea = [0.1, 1]\n[key]\nsolarize = 0.5\nsigma = [1, 3]\n')
    v3 = ViewPair.moco_v3().changed(area=(0.1, 1.0))
    assert pair == ViewPair(v3.query, replace(v3.key, solarize=0.5, sigma=(1.0, 3.0)))
    assert pair.name == str(pair) == "views.toml"
    assert all(isinstance(value, float | tuple) for value in (pair.key.solarize, pair.query.area, pair.query.grey))
    # without a base those of v1; a table wins over what is above it
    pair = _read(tmp_path, "grey = 0\n[query]\ngrey = 1\n")
    assert pair == ViewPair(replace(ViewSpec.moco_v1(), grey=1.0), replace(ViewSpec.moco_v1(), grey=0.0))
    assert _read(tmp_path, "") == ViewPair.moco_v1()


def test_a_file_has_every_number_but_the_side(tmp_path):
    assert {each.name for each in fields(ViewSpec)} - set(NUMBERS) == {"image_size", "mean", "std"}
    tables = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(tables) == 3
    shown = [_read(tmp_path, table) for table in tables]
    assert shown[0].query.blur == 1.0 and shown[0].key.solarize == 0.2
    assert not shown[1].query.colours and shown[1].query.turns == 0.75
    named = re.findall(r"^\| (`.+?`) \|", PAGE.read_text(encoding="utf-8"), re.M)
    assert set(NUMBERS) <= set(re.findall(r"`(\w+)`", " ".join(named)))


def test_recorded_numbers_come_back_and_their_differences_are_named():
    pair = replace(ViewPair.moco_v3(64), name="mine.toml")
    plain = json.loads(json.dumps(recorded(pair)))
    assert "image_size" not in plain["query"]
    back = of_tables(plain, "views")
    assert back.changed(image_size=64) == pair and back.name == "mine.toml"
    assert differences(pair, back) == {}
    other = replace(back, key=replace(back.key, solarize=0.3, area=(0.1, 1.0)))
    assert differences(pair, other) == {"key: area": ([0.2, 1.0], [0.1, 1.0]), "key: solarize": (0.2, 0.3)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("solarise = 0.2", ": solarise=0.2 is not a number of a view; did you mean solarize?"),
        ("[key]\nsolarise = 0.2", r", \[key\]: solarise=0.2 is not a number of a view; did you mean solarize?"),
        ("[key]\nnonsense = 1", r", \[key\]: nonsense=1 is not a number of a view; known: area, ratio, flip"),
        ("[key]\nflip = 1.5", r", \[key\]: flip=1.5 is not a probability: use a number from 0 to 1"),
        ("flip = nan", ": flip=nan is not a probability"),
        (f"flip = 1{'0' * 400}", ": flip=10+… is too large; write flip = 0.5"),
        (f"[key]\nsigma = [0.1, 1{'0' * 400}]", r", \[key\]: sigma=\[0.1, 10+… is too large; write sigma = \[0.1, 2\]"),
        (
            "[key]\nsigma = [0.1, 1e308]\nblur = 1",
            r": sigma=\(0.1, 1e\+308\) must satisfy 0 < smallest <= largest <= 1e6",
        ),
        ("brightness = 1e308", ": brightness=1e.308 is no strength"),
        ('[query]\nblur = "often"', r", \[query\]: blur='often' is not a number; write blur = 0"),
        ("[query]\nblur = true", r", \[query\]: blur=True is not a number"),
        ("area = 0.5", r": area=0.5 is not a list of 2 numbers; write area = \[0.2, 1\]"),
        ("area = [0.5]", r": area=\[0.5\] is not a list of 2 numbers"),
        ("area = [0.9, 0.5]", r": area=\(0.9, 0.5\) must satisfy 0 < smallest <= largest <= 1"),
        ("[key]\nmean = [0, 0, 0]", r", \[key\]: mean=\[0, 0, 0\] is not a number of a view; give it by --mean"),
        ('base = "v9"', ": base='v9' is no augmentation; use one of v1, v2, v3"),
        ('[key]\nbase = "v2"', r", \[key\]: base='v2' is not for one view; write it above the tables"),
        ("image_size = 64", ": image_size=64 is not a number of a view; give it by --image-size"),
        ("key = 3", r": key=3 is no table; write \[key\] above its numbers"),
        ("[both]\nflip = 1", r"is not a view; the tables are \[query\] and \[key\], and what stands above them"),
        ("flip = ", "is not TOML"),
    ],
)
def test_an_error_names_file_table_name_value_and_remedy(tmp_path, text, says):
    with pytest.raises(PipelineError, match=f"--views .*views.toml.*{says}"):
        _read(tmp_path, text)
