"""`fastmoco map`: the page of features, what is on it, and that nothing in a name can run."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmoco.maps.html import SCRIPT, STYLE
from fastmoco.maps.projection import plane
from shards import ShardSet
from tests.support.features import features, write_features
from tests.support.sets import pack_set

CHROMIUM = shutil.which("chromium")
HOSTILE = [
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "a\"b'c`${document.title='owned'}\\",
    "line\u2028separator\u2029end",
    "\u202egnp.exe\u202c \u200f\u2066",
    "]]><!--<script>",
    "&lt;b&gt; &amp; &#x3c;script&#x3e;",
    "x" * 5000 + "/end.jpg",
]


@pytest.fixture(scope="module")
def written(shard_sets, tmp_path_factory):
    """Features of the 96 training images."""
    with ShardSet(shard_sets / "train") as shard_set:
        labels, names = shard_set.labels(np.arange(96)), shard_set.names(np.arange(96))
        given = (features(96)[0], shard_set.digest, names, labels, shard_set.classes)
        return write_features(tmp_path_factory.mktemp("map") / "features", shard_set.path, *given)


@pytest.fixture
def draw(in_process, tmp_path):
    """Runs the command and returns the page and its data; by principal components, which take no time."""

    def drawn(place, *arguments, method="pca", check=True):
        out = tmp_path / "new/map.html"
        given = ("-m", "fastmoco.mapping", *arguments, "--in", place, "--out", out, "--method", method)
        done = in_process(*given, check=check)
        if done.returncode:
            return done
        page = out.read_text(encoding="utf-8")
        return done, page, Parsed(page).data

    return drawn


class Parsed(HTMLParser):
    """Elements, scripts, and the data of a page, by a parser that follows HTML's rules."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.scripts, self.policy, self.sheets, self._kind = set(), [], "", [], None
        self.feed(html)
        (data,) = [content for kind, content in self.scripts if kind == "application/json"]
        self.data = json.loads(data)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        given = dict(attrs)
        assert not [name for name in given if name.startswith("on")] and not {"href", "style"} & set(given)
        if tag == "script":
            self._kind = given.get("type", "")
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        if tag == "img":
            head, _, content = given["src"].partition(",")
            assert head == "data:image/jpeg;base64"
            self.sheets.append(Image.open(io.BytesIO(base64.b64decode(content))))

    def handle_data(self, data):
        if self._kind is not None:
            self.scripts.append((self._kind, data))
            self._kind = None


def test_the_page_has_places_neighbours_and_thumbnails_of_each_image(written, shard_sets, draw):
    done, page, data = draw(written)
    said = (
        r"wrote a map of 96 of 96 images to .*map\.html \(\d+(\.\d)? kB\): PCA: two principal components with \d+ % of"
    )
    assert re.fullmatch(said + " the variance\n", done.stdout)
    _, unit = features(96)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    near = np.argsort(-cosine, axis=1)[:, :12]
    assert data["k"] == 12 and np.array_equal(np.reshape(data["near"], (96, 12)), near)
    expected = np.take_along_axis(cosine, near, 1) * 10000
    assert np.abs(np.reshape(data["cosines"], (96, 12)) - expected).max() <= 0.51  # rounded
    # the components of another algorithm, whose signs are free
    left, values, _ = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    for found, component in zip((data["x"], data["y"]), (left * values).T, strict=False):
        assert abs(np.corrcoef(found, component)[0, 1]) > 0.99999
    wide, high = np.ptp(data["x"]), np.ptp(data["y"])
    assert max(wide, high) == 65535  # the longer side fills it, and both have one scale
    assert wide / high == pytest.approx(np.ptp(left[:, 0] * values[0]) / np.ptp(left[:, 1] * values[1]), rel=1e-4)
    parsed = Parsed(page)
    with ShardSet(shard_sets / "train") as shard_set:
        assert data["names"] == shard_set.names(np.arange(96)) and data["labels"] == list(
            shard_set.labels(np.arange(96))
        )
        assert data["classes"] == list(shard_set.classes)
        (sheet,) = parsed.sheets
        for place in (0, 37, 95):
            with Image.open(io.BytesIO(shard_set.read(place))) as image:
                edge = min(image.size)
                left, top = (image.width - edge) / 2, (image.height - edge) / 2
                whole = image.convert("RGB").resize((64, 64), box=(left, top, left + edge, top + edge))
            corner = (place % 32 * 64, place // 32 * 64)
            tile = sheet.crop((*corner, corner[0] + 64, corner[1] + 64))
            # of another image of this set it is over 25
            assert np.abs(np.asarray(tile, float) - np.asarray(whole, float)).mean() < 10
    labels = np.array(data["labels"])
    assert len(data["chosen"]) == 4 == len(set(labels[data["chosen"]]))  # one of each class


def test_the_page_allows_its_own_script_and_style_alone(written, draw):
    _, page, _ = draw(written)
    parsed = Parsed(page)
    style, script = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (STYLE, SCRIPT))
    assert parsed.policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'; "
        f"script-src 'sha256-{script}'"
    )
    assert [kind for kind, _ in parsed.scripts] == ["application/json", ""] and parsed.scripts[1][1] == SCRIPT
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function|fetch|import", SCRIPT)
    urls = set(re.findall(r"https?://[^\"' ]+", page))
    assert urls == {"http://www.w3.org/2000/svg"}  # the name of SVG's elements, which is not fetched


@pytest.fixture
def hostile(shard_sets, tmp_path):
    """Features whose names and classes are made to do harm."""
    labels = np.arange(len(HOSTILE)) % len(HOSTILE)
    with ShardSet(shard_sets / "train") as shard_set:
        given = (features(len(HOSTILE))[0], shard_set.digest, HOSTILE, labels, HOSTILE)
        return write_features(tmp_path / "hostile", shard_set.path, *given)


def test_names_are_data_and_nothing_else(hostile, draw):
    _, page, data = draw(hostile)
    parsed = Parsed(page)
    assert len(parsed.scripts) == 2 and len(parsed.sheets) == 1
    plain = [0, 1, 2, 3, 5, 6]
    assert [data["names"][place] for place in plain] == [HOSTILE[place] for place in plain]
    assert data["names"][4] == r"\u202egnp.exe\u202c \u200f\u2066"  # direction marks are spelt out
    assert len(data["names"][7]) == 200 and data["names"][7].endswith("xx/end.jpg") and data["names"][7][0] == "…"
    assert data["classes"] == data["names"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_shows_them_as_text(hostile, draw, tmp_path):
    draw(hostile)
    line = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'browser'}",
    ]
    line += ["--virtual-time-budget=5000", "--dump-dom", (tmp_path / "new/map.html").as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=300)
    assert 'data-ready="yes"' in done.stdout and "<title>owned" not in done.stdout
    assert "CONSOLE" not in done.stderr, done.stderr  # neither an error nor a violation of the policy
    panel = done.stdout.partition('id="own"')[2].partition('id="spoken"')[0]
    for place in (0, 1, 2, 6):
        text = HOSTILE[place].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        assert f'<span class="name">{text}</span>' in panel or f'<div class="name">{text}</div>' in panel


def test_images_that_are_asked_for_are_there_with_their_neighbours_of_the_whole_set(written, draw):
    names = json.loads((written / "embedding.json").read_text())["classes"]
    _, _, whole = draw(written, "--k", 5)
    asked = [whole["names"][3], whole["names"][90]]
    done, page, data = draw(written, *asked, "--points", 14, "--k", 5)
    assert "wrote a map of 14 of 96 images" in done.stdout and "14 of 96 images, evenly spaced over the set" in page
    assert data["chosen"] == [data["names"].index(name) for name in asked] and data["ids"] == sorted(data["ids"])
    for place, sample in zip(data["chosen"], (3, 90), strict=True):
        found = [data["ids"][other] for other in data["near"][place * 5 : place * 5 + 5]]
        assert found == whole["near"][sample * 5 : sample * 5 + 5]
    assert data["classes"] == names
    done = draw(written, *asked, "--points", 5, "--k", 5, check=False)
    assert done.returncode == 2 and re.search(r"their neighbours are 1[0-2]; --points is 5", done.stderr)
    _, _, some = draw(written, "--points", 20)
    assert len(some["ids"]) == 20 and np.diff(some["ids"]).min() >= 4  # evenly spaced


def test_one_image_no_labels_and_equal_features(shard_sets, draw, tmp_path):
    with ShardSet(shard_sets / "train") as shard_set:
        for name, made in (("one", features(1)[0]), ("equal", np.ones((30, 4), np.float32))):
            write_features(tmp_path / name, shard_set.path, made, shard_set.digest)
    done, page, data = draw(tmp_path / "one", method="auto")
    assert (data["k"], data["near"], data["labels"], data["chosen"]) == (0, [], [-1], [0]) and data["classes"] == []
    assert "a map of 1 of 1 image to" in done.stdout and "PCA, as there are fewer than 10 images: " in page
    done, page, data = draw(tmp_path / "equal", method="auto")
    assert "PCA, as all features are equal: two principal components with 0 % of the variance" in page
    assert len(set(data["x"])) == 1 and set(data["cosines"]) == {10000}
    assert data["near"][:12] == list(range(1, 13))  # of equal ones the first


def test_an_image_that_cannot_be_read_is_grey_and_counted(shard_sets, written, draw, tmp_path):
    copy = tmp_path / "set"
    shutil.copytree(shard_sets / "train", copy)
    with ShardSet(copy) as shard_set:
        row, shard = shard_set.rows(np.array([3]))[0], int(np.searchsorted(shard_set.ends, 3, side="right"))
    with (copy / f"shard-{shard:06d}.tar").open("r+b") as tar:
        tar.seek(int(row["offset"]))
        tar.write(bytes(int(row["size"])))
    done, page, _ = draw(written, "--images", copy)
    assert f"1 image of {copy} cannot be read and is shown in grey" in done.stderr
    assert "1 image, which cannot be read, in grey" in page
    (sheet,) = Parsed(page).sheets
    # without its rim: decoders blend the colours of neighbouring pixels
    assert np.abs(np.asarray(sheet.crop((194, 2, 254, 62)), int) - 128).max() <= 2


def test_a_set_that_has_grown_is_shown_as_it_was(shard_sets, photos, written, draw, tmp_path):
    grown = Path(shutil.copytree(shard_sets / "train", tmp_path / "grown"))
    pack_set(photos / "val", grown, append=True)
    pages = [Parsed(draw(written, "--images", images)[1]) for images in (grown, shard_sets / "train")]
    assert pages[0].data == pages[1].data and len(pages[0].data["names"]) == 96
    assert pages[0].sheets[0].tobytes() == pages[1].sheets[0].tobytes()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--images", "VAL"), "--images: VAL is not the set of the features in FEATURES, which are of TRAIN"),
        (("--images", "NOWHERE"), "--images: "),
        (("nobody.jpg",), "nobody.jpg is not the name of an image in FEATURES, which has names like "),
        (("--thumbnail", "20"), "--thumbnail is 20; it must be a multiple of 16"),
        (("--points", "20001"), "--points is 20,001; it must be at most 20,000"),
    ],
)
def test_a_mistake_is_said_in_a_line(written, shard_sets, draw, tmp_path, arguments, says):
    places = {
        "VAL": shard_sets / "val",
        "NOWHERE": tmp_path / "nowhere",
        "FEATURES": written,
        "TRAIN": shard_sets / "train",
    }
    done = draw(written, *(places.get(argument, argument) for argument in arguments), check=False)
    for word, place in places.items():
        says = says.replace(word, str(place))
    assert done.returncode == 2 and says in done.stderr and not (tmp_path / "new/map.html").exists()


def test_without_its_extra_the_page_says_how_it_was_made(written, draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    _, page, _ = draw(written, method="auto")
    assert "PCA, as openTSNE, of the extra `map`, is not installed: two principal components" in page
    done = draw(written, method="tsne", check=False)
    assert (
        done.returncode == 2
        and "--method tsne needs openTSNE: pip install 'fastmoco[map]', or --method pca" in done.stderr
    )


@pytest.mark.long
def test_tsne_keeps_groups_together_and_is_the_same_each_time():
    pytest.importorskip("openTSNE")
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(4), 40)
    made = generator.normal(size=(4, 32))[groups] + 0.1 * generator.normal(size=(160, 32))
    unit = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
    first, words = plane(unit, "tsne", 3)
    assert np.array_equal(first, plane(unit, "auto", 3)[0]) and not np.array_equal(first, plane(unit, "tsne", 4)[0])
    assert re.fullmatch(r"t-SNE by openTSNE [\d.]+: perplexity 30, seed 3, on 32 principal components", words)
    distance = np.linalg.norm(first[:, None] - first[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert np.array_equal(groups[distance.argmin(1)], groups)
    assert logging.getLogger("openTSNE").level == logging.WARNING
