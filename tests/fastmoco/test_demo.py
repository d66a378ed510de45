from __future__ import annotations

import base64
import io
import re
import shutil
import sys
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from PIL import Image

from fastmoco.config import ConfigError
from fastmoco.demo.args import Args
from fastmoco.demo.data import DemoError
from fastmoco.demo.stages import run
from fastmoco.report.charts import draw, ticks
from fastmoco.report.curves import Chart, Level, Series
from fastmoco.runs.errors import FolderInUse
from shards import PackError
from shards.storage.locking import locked
from tests.support.runs import metrics
from tests.support.sets import pack_set

SECTIONS = ("Two views of each image", "Training", "Nearest neighbours", "Settings and environment", "What to do next")


def pictures(html: str) -> list[Image.Image]:
    """Every picture of a page, decoded; a page may not point to anything outside itself."""
    sources = re.findall(r'<img[^>]* src="([^"]*)"', html)
    assert sources and all(source.startswith("data:image/") for source in sources)
    markup = re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)  # base64 may contain any four letters
    assert "<script" not in markup and "://" not in markup
    images = [Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))) for source in sources]
    for image in images:
        image.load()
    return images


def charts(html: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


@pytest.mark.slow
def test_the_command_on_made_images(command, tmp_path):
    shown = command(sys.executable, "-m", "fastmoco.demo", "--limit", "160", "--steps", "4").stdout
    html = (tmp_path / "runs/demo/report.html").read_text()
    for title in SECTIONS:
        assert f"<h2>{title}</h2>" in html
    # the sheet of views, and 8 queries with 8 neighbours each, for two encoders
    assert len(pictures(html)) == 1 + 2 * 8 * 9
    assert len(charts(html)) == 2
    said = re.search(r"untrained ([\d.]+) ± ([\d.]+) %, trained ([\d.]+) ± ([\d.]+) %", shown).groups()
    untrained, error, trained, last_error = map(float, said)
    assert f"{untrained:.1f} ± {error:.1f} % →</i> <em>{trained:.1f} ± {last_error:.1f} %" in html
    assert error == round((untrained * (100 - untrained) / 20) ** 0.5, 1)  # 20 held-out images
    # four steps on 140 images teach nothing that 20 images could show
    assert "equal within the standard error, so this run does not show that training improved" in html
    assert "The loss ends at" in html and " times" not in html
    probes = [record["knn_top1"] for record in metrics(tmp_path / "runs/demo") if "knn_top1" in record]
    # the report and the training monitor probe the same images with the same encoders
    assert (round(probes[0], 1), round(probes[-1], 1)) == (untrained, trained)


def test_own_images_in_class_folders_and_reruns(photos, tmp_path, capsys):
    args = Args(src=photos, out=tmp_path / "run", steps=3)  # it holds splits: train and val
    html = run(args).read_text()
    assert capsys.readouterr().out.startswith(f"{photos} holds splits: using {photos / 'train'} alone\n")
    assert "4 classes" in html and "untrained → trained" in html
    used = {
        part: {p.resolve() for p in (tmp_path / "run/data/images" / part).rglob("*.jpg")} for part in ("train", "val")
    }
    assert len(used["train"]) == 84 and len(used["val"]) == 12 and not used["train"] & used["val"]

    checkpoint = tmp_path / "run/checkpoints/step-00000003.pt"
    trained = checkpoint.stat().st_mtime_ns
    state = tmp_path / "run/demo.json"
    state.write_text(state.read_text().replace('"finished": true', '"finished": false'))
    report = tmp_path / "run/report.html"
    report.unlink()
    assert run(args) == report and report.exists()
    assert checkpoint.stat().st_mtime_ns == trained  # interrupted before the report: the training is kept

    (tmp_path / "run/mine.txt").write_text("kept")
    report.write_text("looked at")
    capsys.readouterr()
    assert run(args) == report and report.read_text() == "looked at"  # finished: kept
    said = capsys.readouterr().out
    assert f"finished: {report}" in said and "--overwrite" in said and "make demo ARGS=--overwrite" in said
    with pytest.raises(DemoError, match=r"a finished demo with other settings \(--steps 3 there, 4 here"):
        run(replace(args, steps=4))
    assert checkpoint.stat().st_mtime_ns == trained
    assert run(replace(args, overwrite=True)).read_text() != "looked at"
    assert checkpoint.stat().st_mtime_ns != trained
    assert (tmp_path / "run/mine.txt").read_text() == "kept"  # not a file of the demo's


def test_own_images_without_labels(photos, tmp_path):
    flat = tmp_path / "Bilder & <mehr>"
    flat.mkdir()
    for place, path in enumerate(sorted((photos / "train").rglob("*.jpg"))[:40]):
        shutil.copy(path, flat / f"größe {place}.jpg")
    (flat / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    html = run(Args(src=flat, out=tmp_path / "run", steps=2, limit=41)).read_text()
    assert "There are no labels" in html and "untrained → trained" not in html
    assert "Bilder &amp; &lt;mehr&gt;" in html and "<mehr>" not in html
    assert len(charts(html)) == 1 and len(pictures(html)) == 1 + 2 * 8 * 9
    assert "right</span>" not in html and 'class="wrong"' not in html


def test_unusable_settings_are_refused(photos, tmp_path):
    splits = tmp_path / "splits"
    splits.mkdir()
    (splits / "val").symlink_to(photos / "val")
    (splits / "test").symlink_to(photos / "val")
    packed = pack_set(photos / "val", tmp_path / "packed")
    cases = [
        (Args(src=tmp_path / "nowhere"), PackError, "nowhere"),
        (Args(src=splits), DemoError, f"the folders of --src {splits} are splits, not one of them for training"),
        (Args(src=photos / "val" / "checks"), DemoError, "6 images to train on; the demo needs at least 32"),
        (Args(src=packed), DemoError, "packed is a shard set; give the folder of the images"),
        (Args(limit=30), DemoError, "--limit 30"),
        (Args(steps=0), ConfigError, "--steps is 0"),
        (Args(image_size=4), ConfigError, "--image-size is 4"),
        (Args(seed=-1), ConfigError, "--seed is -1"),
    ]
    for number, (args, kind, says) in enumerate(cases):
        with pytest.raises(kind, match=re.escape(says)):
            run(Args(**{**vars(args), "out": tmp_path / f"run{number}"}))
    with pytest.raises(PackError, match=re.escape(f"--out {splits / 'run'} is inside --src {splits}")):
        run(Args(src=splits, out=splits / "run"))
    (tmp_path / "used").mkdir()
    with locked(tmp_path / "used/lock", "process 7 on HOST"), pytest.raises(FolderInUse, match="written by process 7"):
        run(Args(out=tmp_path / "used"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("")
    with pytest.raises(DemoError, match="not the demo's"):
        run(Args(out=tmp_path / "full"))


def test_ticks_are_round_and_cover_the_range():
    assert ticks(0.0, 7.1) == [0, 2, 4, 6, 8]
    assert ticks(5.9, 6.4) == [5.9, 6.0, 6.1, 6.2, 6.3, 6.4]
    assert len(ticks(3.0, 3.0)) >= 2


def test_a_chart_holds_its_points_and_escapes_its_words():
    series = Series("<a> & b", [(0, 1.0), (2, 3.0)], errors=[0.5, 0.5])
    svg = draw(Chart("a < b", [series], x_name="x & y", levels=[Level(2.0, "<level>")], dots=True))
    chart = ElementTree.fromstring(svg)
    curve = next(part for part in chart if part.get("class") == "curve c0")
    points = [tuple(map(float, point.split(","))) for point in curve.get("points").split()]
    assert points[0][0] < points[1][0] and points[0][1] > points[1][1]  # y runs downwards
    assert sum(part.tag == "circle" for part in chart) == 2
    errors = [part for part in chart if part.get("class") == "error c0"]
    # half a unit of two, to both sides
    assert [float(e.get("y2")) - float(e.get("y1")) for e in errors] == [
        pytest.approx((points[0][1] - points[1][1]) / 2, abs=0.2)
    ] * 2
    assert "<level>" in "".join(chart.itertext()) and "<a> & b, x & y 2: 3 ± 0.5" in "".join(chart.itertext())
