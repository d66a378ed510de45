"""The report's style sheet and HTML elements."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --page: #f6f6f3; --card: #fff; --ink: #1d2330; --soft: #667085; --line: #e4e4de;
  --accent: #3b5bdb; --warm: #d9480f; --good: #2f9e44; --bad: #d6336c; }
@media (prefers-color-scheme: dark) { :root { --page: #12151c; --card: #1b202a; --ink: #e8eaf0; --soft: #98a2b3;
  --line: #2c333f; --accent: #91a7ff; --warm: #ffa94d; --good: #51cf66; --bad: #f783ac; } }
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
.tile.main b { color: var(--accent); font-size: 2.1rem; line-height: 1.2; }
.tile.main i { color: var(--soft); font-style: normal; font-weight: 400; }
@media (max-width: 520px) { .tile.main { grid-column: auto; } }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 28px; }
svg { width: 100%; height: auto; display: block; }
.grid { stroke: var(--line); } .tick { fill: var(--soft); font-size: 12px; }
.curve { fill: none; stroke: var(--accent); stroke-width: 2.4; stroke-linejoin: round; }
.dot { fill: var(--accent); stroke: var(--card); stroke-width: 1.5; }
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
th { color: var(--soft); font-weight: 400; width: 42%; }
pre { background: var(--page); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; overflow-x: auto;
  font: 0.86rem/1.5 ui-monospace, "Cascadia Code", Menlo, Consolas, monospace; margin: 6px 0 16px; }
footer { color: var(--soft); font-size: 0.86rem; margin-top: 24px; }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A complete HTML document without external resources."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, text: str, *content: str) -> str:
    """A card with a title; `text` may contain markup."""
    return f'<section>\n<h2>{escape(title)}</h2>\n<p class="soft">{text}</p>\n' + "\n".join(content) + "\n</section>"


def tile(figure: str, text: str, main: bool = False) -> str:
    """One headline number; `figure` may contain markup."""
    kind = "tile main" if main else "tile"
    return f'<div class="{kind}"><b>{figure}</b><span class="soft">{escape(text)}</span></div>'


def table(rows: Sequence[tuple[str, object]]) -> str:
    """A two-column table of names and values."""
    lines = (f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in rows)
    return f"<table>{''.join(lines)}</table>"


def picture(data: bytes, kind: str, alt: str, css: str = "") -> str:
    """An image embedded in the page; `kind` is png or jpeg."""
    name = f' class="{css}"' if css else ""
    encoded = base64.b64encode(data).decode("ascii")
    return f'<img{name} alt="{escape(alt, quote=True)}" src="data:image/{kind};base64,{encoded}">'
