"""Query images and their nearest neighbours, as pages show them and RUN/neighbours.json holds them."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastmoco.report.page import picture
from shards.format.manifest import parse_json
from shards.storage.files import write_whole

FILE = "neighbours.json"
"""Name of the file in a run folder."""


@dataclass(frozen=True)
class Thumbnail:
    """A small JPEG, and the name of its class or of the image."""

    jpeg: bytes
    name: str


@dataclass(frozen=True)
class Row:
    """One query and its nearest neighbours.

    Attributes:
        query: the query.
        neighbours: the nearest first.
        right: whether each neighbour has the query's label; None without labels.
    """

    query: Thumbnail
    neighbours: tuple[Thumbnail, ...]
    right: tuple[bool, ...] | None


def save(run: Path, step: int, rows: Sequence[Row]) -> None:
    """Write RUN/neighbours.json: rows of the encoder after `step` steps."""
    plain = [
        {"query": _plain(row.query), "neighbours": [_plain(each) for each in row.neighbours], "right": row.right}
        for row in rows
    ]
    write_whole(run / FILE, (json.dumps({"step": step, "rows": plain}) + "\n").encode())


def load(run: Path) -> tuple[int, list[Row]] | None:
    """What `save` wrote: the step, and the rows; None if there is no readable file."""
    try:
        content = parse_json((run / FILE).read_bytes())
        rows = [
            Row(
                _thumbnail(row["query"]),
                tuple(map(_thumbnail, row["neighbours"])),
                row["right"] and tuple(row["right"]),
            )
            for row in content["rows"]
        ]
        return int(content["step"]), rows
    except (OSError, ValueError, KeyError, TypeError):
        return None


def grid_of(title: str, rows: Sequence[Row]) -> str:
    """The rows below a title, with the share of neighbours that have their query's label."""
    marks = [mark for row in rows for mark in row.right or ()]
    share = f' <span class="soft">· {sum(marks)} of {len(marks)} right</span>' if marks else ""
    return f"<div><h3>{title}{share}</h3>{''.join(map(_line, rows))}</div>"


def explained(labelled: bool) -> str:
    """What the rows show, as markup."""
    about = "Each row shows a query image and the training images with the most similar features, nearest first."
    if labelled:
        about += (
            ' <span class="key right"></span> same label as the query, <span class="key wrong"></span> another label. '
            "The queries are from evenly spaced classes, not selected by result."
        )
    return about


def _line(row: Row) -> str:
    cells = [picture(row.query.jpeg, "jpeg", f"query: {row.query.name}"), "<span></span>"]
    for place, near in enumerate(row.neighbours):
        css = "" if row.right is None else "right" if row.right[place] else "wrong"
        cells.append(picture(near.jpeg, "jpeg", near.name, css))
    return f'<div class="row">{"".join(cells)}</div>'


def _plain(thumbnail: Thumbnail) -> dict[str, str]:
    return {"jpeg": base64.b64encode(thumbnail.jpeg).decode("ascii"), "name": thumbnail.name}


def _thumbnail(plain: dict[str, str]) -> Thumbnail:
    return Thumbnail(base64.b64decode(plain["jpeg"]), str(plain["name"]))
