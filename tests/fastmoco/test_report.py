"""Pages, tables and pictures of runs."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from fastmoco.recipes import recipe
from fastmoco.report import __main__ as entry
from fastmoco.report import rows
from fastmoco.report.curves import charts_of, thinned
from fastmoco.report.page import STYLE
from fastmoco.report.pages import page_of, state_in_words
from fastmoco.report.reading import read_run, runs_below
from fastmoco.report.record import Accuracy
from fastmoco.report.rows import Row, Thumbnail
from fastmoco.report.show import Args, run
from fastmoco.report.terminal import SORTS, remarks, table
from fastmoco.report.words import about_loss, times, verdict

HOSTILE = "</style><script>alert(1)</script>\"'><img src=x onerror=alert(2)>&javascript:x\u202egnp\u200f.\ud800"


def written(folder, steps=(1, 5, 10), total=10, knn=((0, 10.0), (10, 60.0)), images=24, **changes):
    """A run folder as training writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = recipe("demo").to_dict() | changes
    environment = {"date": "2026-03-04T05:06:07+00:00", "command": "fastmoco train", "total_steps": total}
    (folder / "config.json").write_text(json.dumps(config | {"environment": environment}))
    records = [
        {"step": step, "epoch": step / 5, "loss": 6 - step / 10, "spread": 0.9, "imgs_per_sec": 100.0 + step,
         "data_wait": 0.01, "queue_fill": 1.0}
        for step in steps
    ] + [{"step": step, "epoch": step / 5, "knn_top1": top1, "knn_images": images} for step, top1 in knn]  # fmt: skip
    lines = [json.dumps(record) + "\n" for record in sorted(records, key=lambda record: record["step"])]
    (folder / "metrics.jsonl").write_text("".join(lines))
    Image.new("RGB", (40, 20), "red").save(folder / "views.png")
    return folder


class Parsed(HTMLParser):
    """Elements, attributes and text of a page, by a parser that follows HTML's rules."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.attributes, self.words, self.values = set(), set(), "", []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.add(tag)
        for name, value in attributes:
            self.attributes.add(name)
            self.values.append((tag, name, value))

    def handle_data(self, data):
        self.words += data


ELEMENTS = {
    *(
        "html",
        "head",
        "meta",
        "style",
        "title",
        "body",
        "main",
        "h1",
        "h2",
        "h3",
        "p",
        "section",
        "div",
        "span",
        "b",
        "i",
    ),
    *("table", "tr", "th", "td", "em", "details", "summary", "img", "svg", "line", "polyline", "circle", "text"),
}
ATTRIBUTES = {
    *("lang", "charset", "http-equiv", "content", "name", "class", "alt", "src", "viewbox", "role", "aria-label"),
    *("x1", "x2", "y1", "y2", "x", "y", "text-anchor", "points", "cx", "cy", "r"),
}


def test_nothing_that_a_name_or_a_value_holds_can_run_in_a_page(tmp_path):
    name = HOSTILE.replace("/", "∕").encode("utf-8", "replace").decode()
    hostile = {"shards": HOSTILE, "knn_val": "javascript:alert(3)", HOSTILE: HOSTILE, "recipe": HOSTILE}
    folders = [written(tmp_path / f"{number}{name}", arch=HOSTILE, **hostile) for number in range(2)]
    config = json.loads((folders[0] / "config.json").read_text())
    config["environment"] |= {"command": HOSTILE, "date": HOSTILE, "packages": {HOSTILE: HOSTILE}}
    (folders[0] / "config.json").write_text(json.dumps(config))
    with (folders[0] / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 10, "epoch": 2, f"top1/{HOSTILE}": 3.0, "note": HOSTILE}) + "\n")
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    thumbnail = Thumbnail(jpeg.getvalue(), HOSTILE.replace("\ud800", ""))
    rows.save(folders[0], 10, [Row(thumbnail, (thumbnail,), (False,))])
    for runs in ([read_run(folders[0])], [read_run(folder) for folder in folders]):
        html = page_of(runs)
        found = Parsed(html)
        assert found.elements <= ELEMENTS and found.attributes <= ATTRIBUTES
        assert not any(value.startswith("javascript") for _, name, value in found.values if name in ("src", "href"))
        assert all(value.startswith("data:image/") for _, name, value in found.values if name == "src")
        assert "<script>alert(1)" in found.words  # as text
        assert "\u202e" not in html and "\u200f" not in html and "\\u202e" in found.words
        policy = next(value for _, name, value in found.values if name == "content" and "default-src" in value)
        allowed = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
        assert policy.startswith(f"default-src 'none'; img-src data:; style-src 'sha256-{allowed}';")
        assert f"<style>{STYLE}</style>" in html  # to the byte what the policy's hash is of
        html.encode()


def test_a_page_shows_loss_against_chance_errors_settings_and_state(tmp_path):
    html = page_of([read_run(written(tmp_path / "run", lr=0.5, shards="https://joe:pw@host/set"))])
    words = Parsed(html).words
    assert "10.0 ± 6.1 % → 60.0 ± 10.0 %" in words  # sqrt(0.1 · 0.9 / 24), sqrt(0.6 · 0.4 / 24)
    assert "kNN top-1 is 10.0 ± 6.1 % before training, 60.0 ± 10.0 % after it." in words
    assert "Finished after 10 steps. Started 2026-03-04 05:06 UTC." in words
    assert "The loss ends at 5.00, 1.93 below chance (dashed)" in words and "chance = 6.93" in words
    titles = re.findall(r"<h3>([^<]*)", html)
    assert titles == [
        "Loss", "kNN top-1", "Spread of the keys", "Images per second", "Time spent waiting for data",
    ]  # fmt: skip
    assert html.count('class="error c0"') == 2
    first, rest = html.split("<details>")[0], html.split("<details>")[1]
    assert "0.5 (recipe: –)" in first and "<th>lr</th>" not in rest and "<th>batch_size</th>" in rest
    assert "https://***@host/set" in html and "pw@" not in html
    assert "fastmoco train" in words and str(tmp_path / "run") in words
    assert "data:image/png;base64," in html and 'http-equiv="refresh"' not in html


def test_several_runs_show_first_where_they_differ(tmp_path):
    runs = [read_run(written(tmp_path / name, lr=lr)) for name, lr in (("a", 0.1), ("b", 0.2))]
    html = page_of(runs)
    settings = html[html.index("<h2>Settings") : html.index("<h2>Environment")]
    shown, folded = settings.split("<details>")
    assert re.findall(r"<tr><th>([^<]+)</th>", shown) == ["lr"] and "<td>0.1</td><td>0.2</td>" in shown
    assert "<th>batch_size</th>" in folded and "lr</th>" not in folded.replace("base_lr", "")
    assert len(re.findall(r"<polyline", html)) == 2 * 5
    environment = html[html.index("<h2>Environment") :].split("<details>")[0]
    assert re.findall(r"<tr><th>([^<]+)</th>", environment) == ["folder"]


def lock(folder):
    """Hold a run's lock as training does."""
    file = (folder / "lock").open("w")
    file.write("process 1 on host\n")
    file.flush()
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def test_the_state_follows_from_the_lock_and_the_steps(tmp_path):
    run = written(tmp_path / "run", steps=(1, 5), knn=())
    assert state_in_words(read_run(run)) == "stopped at step 5 of 10"
    with lock(run):
        assert state_in_words(read_run(run)) == "running, at step 5 of 10"
        (run / "metrics.jsonl").unlink()
        assert state_in_words(read_run(run)) == "starting"
        assert "There are no figures yet." in page_of([read_run(run)], watched=True)
        assert 'http-equiv="refresh"' in page_of([read_run(run)], watched=True)
    assert state_in_words(read_run(written(run))) == "finished after 10 steps"  # a lock that nobody holds
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "lock").touch()
    assert read_run(tmp_path / "young").state == "starting"


def test_the_status_tells_how_a_run_ended_and_what_harms_it(tmp_path):
    run_folder = written(tmp_path / "run", steps=(1, 5), knn=())

    def says(**status):
        (run_folder / "status.json").write_text(json.dumps({"figures": {}, **status}))
        return read_run(run_folder)

    reason = "OutOfMemoryError: \x1b[2J<b>"
    warnings = [{"name": "disk", "message": "1 GB is free"}, {"name": "clock", "message": "the clock jumped"}, "odd"]
    assert state_in_words(says(state="running")) == "lost at step 5 of 10: its process ended without a word"
    assert state_in_words(says(state="stopped", step=7)) == "stopped at step 7 of 10"  # between two log lines
    assert says(state="stopped", reason="x").state == "stopped"
    with lock(run_folder):
        assert says(state="running", warnings=warnings).state == "running"
        assert says(state="stopped").state == "running"  # it has just been started again
    record = says(state="failed", reason=reason, warnings=warnings)
    assert state_in_words(record) == "failed at step 5 of 10" and "&lt;b&gt;" in page_of([record])
    assert "Warning: 1 GB is free" in page_of([record])
    console = Console(width=80, file=io.StringIO(), force_terminal=True, color_system=None)
    assert remarks([record]) == [
        r"run failed: OutOfMemoryError: \x1b[2J<b>", "run disk: 1 GB is free", "run clock: the clock jumped"
    ]  # fmt: skip
    assert [column.header for column in table([record], console, plain=True).columns][-1] == "warnings"
    assert says(state=[], warnings=3, figures=None).state == "stopped"
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, "rollback": {"found": 8, "to": 5, "position": 8, "cause": "x"}}) + "\n")
    said = "the run went back to step 5 (from 8) and skipped the batches since"
    assert said in page_of([says()]) and said not in page_of([record])


def test_old_incomplete_and_odd_records_are_read(tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text(json.dumps({"recipe": "gone", "arch": "resnet10", "epochs": 4}))
    good = {"step": 6, "epoch": 1.0, "loss": 3.0, "data_wait": None, "imgs_per_sec": float("nan")}
    lines = [json.dumps(good), json.dumps({"step": 6, "epoch": 1.0, "knn_top1": 50.0}), "[1]", "{}", '{"step": 7, "los']
    (old / "metrics.jsonl").write_text("\n".join(lines))
    record = read_run(old)
    assert (record.step, record.total_steps, record.state) == (6, 24, "stopped")
    assert record.rate() is None and str(record.knn()[-1][1]) == "50.0 %"
    assert [chart.title for chart in charts_of([record])] == ["Loss", "kNN top-1"]
    assert "50.0 %" in page_of([record])
    (old / "config.json").write_text("{")
    assert "no readable config.json" in page_of([read_run(old)])


def test_long_curves_are_drawn_as_means():
    points = [(float(x), 2.0 * x) for x in range(3000)]
    drawn = thinned(points)
    assert len(drawn) == 300 and drawn[0] == (4.5, 9.0) and drawn[-1] == (2994.5, 5989.0)


def test_the_command_writes_a_page_a_png_and_a_plain_table(tmp_path, in_process):
    for name, top1 in (("a", 40.0), ("b", 70.0)):
        written(tmp_path / "runs" / name, knn=((10, top1),))
    (tmp_path / "runs" / "latest").symlink_to("a")
    (tmp_path / "runs" / "other").mkdir()
    command = ("-m", "fastmoco.report.__main__")
    assert tuple(SORTS) == entry.SORTS
    lines = in_process(*command, "--sort", "knn").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["run", "b", "a"] and "│" not in lines[0]
    assert "70.0 ± 9.4 %" in lines[1] and "10/10" in lines[1] and "2026-03-04 05:06" in lines[1]
    done = in_process(*command, "runs/a", "runs/b", "--png", "c.png")
    assert "page: runs.html, curves: c.png" in done.stdout and "2 runs" in (tmp_path / "runs.html").read_text()
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.format == "PNG" and picture.width > 1000
    in_process(*command, "runs/a")
    assert "<h1>a</h1>" in (tmp_path / "runs/a/report.html").read_text()
    (tmp_path / "runs/a/demo.json").touch()
    assert "page: runs/a/run.html" in in_process(*command, "runs/a").stdout  # the demo's report stays
    written(tmp_path / "elsewhere" / "a")
    twice = in_process(*command, "runs/a", "elsewhere/a").stdout
    assert {line.split()[0] for line in twice.splitlines()} == {"run", "runs/a", "elsewhere/a", "page:"}
    for arguments, says in (
        (["nowhere"], "there is no folder nowhere"),
        (["runs/other"], "runs/other is not the folder of a run: it has no config.json"),
        (["runs/a", "--png", "c.jpg"], "--png c.jpg does not end in .png"),
        (["--watch"], "--watch is for runs that are named"),
        (["runs/a", "--every", "0"], "--every is 0.0"),
    ):
        done = in_process(*command, *arguments, check=False)
        assert done.returncode == 2 and done.stderr.startswith(f"fastmoco runs: {says}"), done.stderr
    assert [found.name for found in runs_below(tmp_path / "runs")] == ["a", "b"]


def test_a_run_that_cannot_be_read_is_left_out_of_the_table_and_named(tmp_path, monkeypatch, caplog):
    for name in ("mine", "theirs"):
        written(tmp_path / "runs" / name)
    (tmp_path / "runs/theirs").chmod(0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    is_root = os.geteuid() == 0
    try:
        if is_root:  # may read whatever the permissions are
            os.seteuid(65534)
        found = runs_below(Path("runs"))
    finally:
        if is_root:
            os.seteuid(0)
        (tmp_path / "runs/theirs").chmod(0o755)
    assert [run.name for run in found] == ["mine"]
    assert caplog.messages == ["theirs is left out: runs/theirs/config.json: Permission denied"]


@pytest.mark.parametrize(("width", "columns"), [(40, 4), (80, 6), (200, 11)])
def test_the_table_fits_the_terminal(tmp_path, width, columns):
    runs = [read_run(written(tmp_path / f"moco-v2-resnet50-2026{n:04}"[: 40 if width > 40 else 80])) for n in (1, 2)]
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    made = table(runs, console, plain=False)
    console.print(made)
    assert len(made.columns) == columns
    assert max(map(len, console.file.getvalue().splitlines())) <= width


def test_a_watched_run_is_followed_to_its_end(tmp_path, monkeypatch, capsys):
    """The run's next events happen while the watcher sleeps, so the test does not depend on time."""
    folder = written(tmp_path / "run", steps=(1,), knn=())
    held = lock(folder)

    def go_on(_seconds):
        if read_run(folder).step == 1:
            with (folder / "metrics.jsonl").open("a") as file:
                file.write('{"step": 10, "epoch": 2, "loss": 3.25}\n{"step": 11, "lo')
        else:
            held.close()

    monkeypatch.setattr("time.sleep", go_on)
    run(Args((folder,), watch=True))
    assert capsys.readouterr().out.splitlines() == [
        "run: running, at step 1 of 10, loss 5.9000",
        "run: running, at step 10 of 10, loss 3.2500",
        "run: finished after 10 steps, loss 3.2500",
    ]
    assert 'http-equiv="refresh"' not in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("before", "after", "images", "says", "ratio"),
    [
        (10.0, 25.0, 1000, "kNN top-1 is 10.0 ± 0.9 % before training, 25.0 ± 1.4 % after it, 2.5 times as much.",
         "2.5 times"),
        (40.0, 50.0, 1000, "kNN top-1 is 40.0 ± 1.5 % before training, 50.0 ± 1.6 % after it.", ""),
        (25.0, 27.0, 100, "equal within the standard error, so this run does not show that training improved", ""),
        (50.0, 50.0, 100, "equal within the standard error", ""),
        (60.0, 20.0, 100, "training made the features worse for this task. Train longer", ""),
        (0.0, 50.0, 100, "kNN top-1 is 0.0 ± 0.0 % before training, 50.0 ± 5.0 % after it.", ""),
        (10.0, 25.0, None, "kNN top-1 is 10.0 % before training, 25.0 % after it, 2.5 times as much.", "2.5 times"),
    ],
)  # fmt: skip
def test_the_verdict_follows_from_the_numbers_and_their_errors(before, after, images, says, ratio):
    pair = Accuracy(before, images), Accuracy(after, images)
    assert says in verdict(*pair) and times(*pair) == ratio
    if ratio == "":
        assert "times" not in verdict(*pair)


@pytest.mark.parametrize(
    ("losses", "fill", "says", "says_not"),
    [
        ([2.0, 6.9, 5.0], 1.0, "ends at 5.00, 1.93 below chance (dashed): the encoder tells the views", "above"),
        ([2.0, 6.9, 5.0], 1.0, "It starts low because the queue contains random vectors at first", "above"),
        ([6.9, 5.0], 1.0, "1.93 below chance", "starts low"),
        ([2.0, 5.0], 0.4, "The queue still contains random vectors, which are easy to tell", "tells the views"),
        ([7.0, 6.93], 1.0, "ends at 6.93, which is chance (dashed): the encoder does not tell", "below"),
        ([7.0, 8.0], 1.0, "ends at 8.00, 1.07 above chance (dashed): nothing was learned yet", "below"),
        ([2.0, 5.0], None, "1.93 below chance", "queue"),
    ],
)
def test_what_is_said_of_the_loss_follows_from_it(losses, fill, says, says_not):
    said = about_loss(losses, 6.9315, fill)
    assert says in said and says_not not in said
