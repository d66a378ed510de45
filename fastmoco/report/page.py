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

COLOURS = 8
"""Colours of curves, as the style sheet has them; further curves repeat them, dashed."""
STYLE = """
:root { color-scheme: light dark; --page: #f6f6f3; --card: #fff; --ink: #1d2330; --soft: #667085; --line: #e4e4de;
  --accent: #3b5bdb; --warm: #d9480f; --good: #2f9e44; --bad: #d6336c; --c0: #3b5bdb; --c1: #c2410c; --c2: #2b8a3e;
  --c3: #9c36b5; --c4: #0c8599; --c5: #a61e4d; --c6: #7a6a00; --c7: #495057; }
@media (prefers-color-scheme: dark) { :root { --page: #12151c; --card: #1b202a; --ink: #e8eaf0; --soft: #98a2b3;
  --line: #2c333f; --accent: #91a7ff; --warm: #ffa94d; --good: #51cf66; --bad: #f783ac;
  --c0: #91a7ff; --c1: #ffa94d; --c2: #69db7c; --c3: #e599f7; --c4: #66d9e8; --c5: #faa2c1; --c6: #ffe066;
  --c7: #ced4da; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 48px 24px 64px; }
h1 { font-size: 2.1rem; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 8px; }
h2 { font-size: 1.2rem; letter-spacing: -0.01em; margin: 0 0 4px; }
h3 { font-size: 0.95rem; margin: 0 0 8px; }
p { margin: 0 0 12px; max-width: 72ch; } .soft { color: var(--soft); } p.soft { font-size: 0.94rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 24px;
  margin-top: 20px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 16px; margin-top: 28px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 18px 20px; }
.tile b { display: block; font-size: 1.55rem; line-height: 1.3; letter-spacing: -0.02em; font-weight: 650;
  white-space: nowrap; font-variant-numeric: tabular-nums; }
.tile.main { grid-column: span 2; border-color: var(--accent); }
.tile.main b { color: var(--accent); font-size: 1.6rem; line-height: 1.3; white-space: normal; }
.tile.main i { color: var(--soft); font-style: normal; font-weight: 400; white-space: nowrap; }
.tile.main em { font-style: normal; white-space: nowrap; }
@media (max-width: 520px) { .tile.main { grid-column: 1 / -1; } }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 28px; }
svg { width: 100%; height: auto; display: block; }
.grid { stroke: var(--line); } .tick { fill: var(--soft); font-size: 12px; }
.c0 { --own: var(--c0); } .c1 { --own: var(--c1); } .c2 { --own: var(--c2); } .c3 { --own: var(--c3); }
.c4 { --own: var(--c4); } .c5 { --own: var(--c5); } .c6 { --own: var(--c6); } .c7 { --own: var(--c7); }
.curve { fill: none; stroke: var(--own); stroke-width: 2.2; stroke-linejoin: round; }
.again { stroke-dasharray: 7 3; } .error { stroke: var(--own); stroke-width: 1.4; opacity: 0.55; }
.dot { fill: var(--own); stroke: var(--card); stroke-width: 1.5; }
.swatch { display: inline-block; width: 12px; height: 12px; border-radius: 4px; background: var(--own);
  vertical-align: -1px; margin-right: 6px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 14px; font-size: 0.92rem; }
.wide { overflow-x: auto; }
.level { stroke: var(--warm); stroke-width: 1.6; stroke-dasharray: 5 4; }
.level-text { fill: var(--warm); font-size: 12px; }
.views { width: 100%; max-width: 820px; image-rendering: pixelated; border: 6px solid #fff; border-radius: 6px; }
.row { display: grid; grid-template-columns: minmax(0, 1fr) 10px repeat(8, minmax(0, 1fr));
  gap: 5px; margin-bottom: 5px; }
.row img { width: 100%; display: block; border-radius: 6px; border: 3px solid transparent; }
.row .right { border-color: var(--good); } .row .wrong { border-color: var(--bad); }
.key { display: inline-block; width: 12px; height: 12px; border-radius: 4px; border: 3px solid; vertical-align: -1px; }
.key.right { border-color: var(--good); } .key.wrong { border-color: var(--bad); }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem; }
th, td { text-align: left; vertical-align: top; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 400; width: 42%; } td, th, h1 { unicode-bidi: isolate; }
.grid-table th { width: auto; white-space: nowrap; overflow-wrap: normal; }
.grid-table td { min-width: 110px; font-variant-numeric: tabular-nums; }
.narrow { max-width: 620px; }
details { margin-top: 14px; } summary { cursor: pointer; color: var(--accent); margin-bottom: 8px; }
pre { background: var(--page); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; overflow-x: auto;
  font: 0.86rem/1.5 ui-monospace, "Cascadia Code", Menlo, Consolas, monospace; margin: 6px 0 16px; }
h1 { overflow-wrap: anywhere; }
@media (max-width: 520px) { main { padding: 24px 12px 40px; } section { padding: 16px 14px; } }
@media print { body { background: #fff; } main { max-width: none; padding: 0; } section, .tile { break-inside: avoid; }
  details::details-content { content-visibility: visible; display: block; block-size: auto; } }
"""


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
