"""The page of a map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastmoco.maps.points import SHEET, Points
from fastmoco.report import page as pages
from fastmoco.report.page import asset, data, page, picture, spelt, table, text
from shards._software import version_of
from shards.words import counted

COLOURS = 7
"""Colours of classes in the style sheet; with the three shapes of the script there are 21 marks."""
STYLE = pages.STYLE + asset("fastmoco.maps", "map.css")
SCRIPT = asset("fastmoco.maps", "map.js")
LONGEST = 200
"""Characters of a name on the page; of a longer one the end is shown, which has the file's name."""


@dataclass(frozen=True)
class Map:
    """What a page shows.

    Attributes:
        points: the images, n of them.
        plane: float64 [n, 2], their coordinates.
        method: how these were made, in words.
        near: int64 [n, k], the neighbours of each.
        cosines: float32 [n, k], their similarities.
        sheets: JPEGs of thumbnails.
        side: width and height of a thumbnail in pixels.
        blank: number of images without a thumbnail.
        title: name of the set.
    """

    points: Points
    plane: np.ndarray
    method: str
    near: np.ndarray
    cosines: np.ndarray
    sheets: Sequence[bytes]
    side: int
    blank: int
    title: str


def html(made: Map) -> str:
    """The document."""
    points, about = made.points, made.points.about
    shown, rows = len(points.ids), about["rows"]
    what = f"{shown:,} images" if shown == rows else f"{shown:,} of {rows:,} images, evenly spaced over the set"
    body = [
        f"<h1>{text(made.title)}</h1>",
        f'<p class="soft said">{text(counted(1, "image") if rows == 1 else what)} · {text(made.method)}</p>',
        "<noscript><p>This page needs JavaScript. Its script asks for nothing outside the page.</p></noscript>",
        f'<div class="layout"><section>{_TOOLS}{_STAGE}{_KEYS}</section>{_PANEL}</div>',
        f'<section class="about"><h2>About this map</h2>{table(_facts(made))}</section>',
        *(picture(sheet, "jpeg", "", "sheet") for sheet in made.sheets),
        data("data", _content(made)),
    ]
    return page(f"{made.title} · map · fastmoco", body, style=STYLE, script=SCRIPT)


_TOOLS = """<div class="tools">
<input type="search" id="find" placeholder="Find names or classes" aria-label="Find names or classes"
 autocomplete="off" spellcheck="false"><span class="soft" id="found" role="status"></span><span class="space"></span>
<button type="button" id="in" aria-label="Zoom in">+</button>
<button type="button" id="out" aria-label="Zoom out">−</button>
<button type="button" id="all">Whole map</button></div>"""
_STAGE = """<div class="stage" id="stage"><canvas id="map" tabindex="0" role="application"
 aria-label="Map of the images; the arrow keys go from image to image" aria-describedby="keys"></canvas>
<div class="tip" id="tip" hidden></div></div>
<div class="legend" id="legend" role="group" aria-label="Classes"></div><p class="soft keys" id="more"></p>"""
_KEYS = """<p class="soft keys" id="keys">Near points have similar features. Point at one to see its image, choose it
for its neighbours; drag and scroll, or use two fingers, to move and zoom. Keys: <kbd>←</kbd> <kbd>↑</kbd> <kbd>→</kbd>
<kbd>↓</kbd> next image, <kbd>+</kbd> <kbd>−</kbd> <kbd>0</kbd> zoom, <kbd>Esc</kbd> none; <kbd>Enter</kbd> among found
names: the next one. A class of the legend shows its images alone.</p>"""
_PANEL = """<section class="panel" aria-label="Neighbours"><div class="chosen" id="chosen"></div>
<p class="soft" id="nothing" hidden>Choose an image on the map.</p>
<div id="image"><h3>Image</h3><div class="own" id="own"></div>
<h3 id="near-title">Most similar images <span class="soft">· cosine similarity</span></h3>
<ol class="near" id="near"></ol></div>
<div role="status" class="spoken" id="spoken"></div></section>"""


def _facts(made: Map) -> list[tuple[str, object]]:
    about, shown = made.points.about, len(made.points.ids)
    facts: list[tuple[str, object]] = [
        ("set", about["place"]),
        ("images", f"{shown:,} of {about['rows']:,}"),
        ("features", f"{about['dim']:,} numbers an image, of unit length"),
        ("encoder", about["checkpoint"] or about["encoder"]),
        ("map", made.method),
        ("neighbours", f"{made.near.shape[1]} of each image, among those on this page, by cosine similarity"),
        ("made by", f"fastmoco {version_of('fastmoco')}"),
    ]
    if made.blank:
        facts.insert(2, ("without a picture", f"{counted(made.blank, 'image')}, which cannot be read, in grey"))
    return facts


def _content(made: Map) -> dict[str, object]:
    points = made.points
    low, high = made.plane.min(0), made.plane.max(0)
    # both axes have one scale, and the map is in the middle of a square
    extent = max(float((high - low).max()), np.finfo(np.float64).tiny)
    places = ((made.plane - (low + high) / 2) / extent + 0.5) * 65535
    used = set(points.labels.tolist())
    return {
        "x": places[:, 0].round().astype(int).tolist(),
        "y": (65535 - places[:, 1]).round().astype(int).tolist(),
        "ids": points.ids.tolist(),
        "names": [_short(name) for name in points.names],
        "labels": [label if label < len(points.about["classes"]) else -1 for label in points.labels.tolist()],
        "classes": [_short(name) if label in used else "" for label, name in enumerate(points.about["classes"])],
        "k": made.near.shape[1],
        "near": made.near.reshape(-1).tolist(),
        "cosines": (made.cosines.astype(np.float64) * 10000).round().astype(int).reshape(-1).tolist(),
        "chosen": list(points.chosen),
        "side": made.side,
        "sheet": SHEET,
        "colours": COLOURS,
    }


def _short(name: str) -> str:
    shown = spelt(name)
    return shown if len(shown) <= LONGEST else "…" + shown[1 - LONGEST :]
