"""The style sheet and the HTML elements of pages.

A page asks for nothing: its Content-Security-Policy allows its own style sheet, its own script if it has one, and
pictures in data: URLs, and forbids all else. Every text that comes from outside, a name or a value, goes through `text`
or `data`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources


def asset(package: str, name: str) -> str:
    """Text of a style sheet or a script, a file of a package."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


COLOURS = 8
"""Colours of curves, as the style sheet has them; further curves repeat them, dashed."""
STYLE = asset("fastmoco.report", "page.css")


def spelt(value: object) -> str:
    """A value as text; control characters and direction marks are spelt out."""
    return "".join(c if unicodedata.category(c)[0] != "C" else c.encode("unicode_escape").decode() for c in str(value))


def text(value: object) -> str:
    """A value as text that is safe in elements and attributes; control characters and direction marks are spelt out."""
    return escape(spelt(value), quote=True)


def page(
    title: str, body: Iterable[str], refresh: int | None = None, style: str = STYLE, script: str | None = None
) -> str:
    """A complete HTML document without external resources.

    Args:
        title: of the window.
        body: elements.
        refresh: seconds after which a browser reads the page again; None for never.
        style: style sheet.
        script: the only script that may run, at the end of the body; None for none.
    """
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"
    if script is not None:
        policy += f"; script-src {_hash(script)}"
    again = "" if refresh is None else f'<meta http-equiv="refresh" content="{refresh}">\n'
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n{again}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + ("\n</main>\n" if script is None else f"\n</main>\n<script>{script}</script>\n")
        + "</body>\n</html>\n"
    )


def data(name: str, value: object) -> str:
    """A value as JSON that the page's script finds by `name`; nothing in it can end its element or be run."""
    content = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII: U+2028 and the like are escaped
    for character in "<>&":
        content = content.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{name}">{content}</script>'


def _hash(content: str) -> str:
    """What a policy calls a style sheet or script by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def section(title: str, about: str, *content: str) -> str:
    """A card with a title; `about` may contain markup."""
    said = f'<p class="soft">{about}</p>\n' if about else ""
    return f"<section>\n<h2>{text(title)}</h2>\n{said}" + "\n".join(content) + "\n</section>"


def tile(figure: str, about: str, main: bool = False) -> str:
    """One headline number; `figure` may contain markup."""
    kind = "tile main" if main else "tile"
    return f'<div class="{kind}"><b>{figure}</b><span class="soft">{text(about)}</span></div>'


def table(rows: Iterable[tuple[str, object]]) -> str:
    """A two-column table of names and values."""
    lines = (f"<tr><th>{text(name)}</th><td>{text(value)}</td></tr>" for name, value in rows)
    return f"<table>{''.join(lines)}</table>"


def grid(heads: Sequence[str], rows: Mapping[str, Sequence[object]]) -> str:
    """A table with a head for each column and a name for each row; `heads` may contain markup."""
    top = "".join(f"<th>{head}</th>" for head in ["", *heads])
    lines = (
        f"<tr><th>{text(name)}</th>{''.join(f'<td>{text(value)}</td>' for value in values)}</tr>"
        for name, values in rows.items()
    )
    return f'<div class="wide"><table class="grid-table"><tr>{top}</tr>{"".join(lines)}</table></div>'


def folded(title: str, content: str) -> str:
    """Content that is shown on a click."""
    return f"<details><summary>{text(title)}</summary>{content}</details>"


def swatch(colour: int) -> str:
    """A square in the colour of a curve."""
    return f'<span class="swatch c{colour % COLOURS}"></span>'


def picture(data: bytes, kind: str, alt: str, css: str = "") -> str:
    """An image embedded in the page; `kind` is png or jpeg."""
    name = f' class="{css}"' if css else ""
    encoded = base64.b64encode(data).decode("ascii")
    return f'<img{name} alt="{text(alt)}" src="data:image/{kind};base64,{encoded}">'
