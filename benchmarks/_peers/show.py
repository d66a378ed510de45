"""The rows of `imgs_per_sec.py --peers` as a Markdown table and as a bar chart."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from fastmoco.demo.charts import number, ticks

_LEFT, _WIDTH, _RIGHT, _TOP, _STEP, _BOTTOM = 210, 480, 70, 44, 30, 40
_COLOURS = {"ours": "#2563eb", "peer": "#9ca3af", "other": "#d6d3d1", "limit": "#f59e0b"}
_KINDS = {"ours": "fastmoco", "peer": "same two views", "other": "less work, see the table", "limit": "decoding alone"}


def markdown(result: dict[str, Any]) -> str:
    """Table, ratios, and what gave them."""
    settings, machine = result["settings"], result["environment"]
    lines = ["| | images/s | lowest to highest | |", "| --- | ---: | ---: | --- |"]
    for row in result["rows"]:
        if "imgs_per_sec" in row:
            figures = f"{row['imgs_per_sec']:,.0f} | {row['lowest']:,.0f} to {row['highest']:,.0f}"
            lines.append(f"| {row['label']} | {figures} | {row['note']} |")
        else:
            lines.append(f"| {row['label']} | – | – | {row['missing']} |")
    lines.append("")
    lines += [f"- {name}: {value:.2f}" for name, value in result["ratios"].items()]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines += [
        "",
        f"{settings['images']:,} images, batches of {settings['batch_size']}, two views of {settings['image_size']} "
        f"pixels; {settings['workers']} workers on as many cores, {machine['cpu']}; median of {settings['repeats']} "
        f"runs of {settings['seconds']:g} s in turn. {machine['date']}, commit {machine['commit']}; "
        f"Python {machine['python']}, {packages}.",
    ]
    return "\n".join(lines) + "\n"


def bar_chart(result: dict[str, Any]) -> str:
    """An SVG picture: a bar for each measured row, with a line from its lowest to its highest run."""
    rows = [row for row in result["rows"] if "imgs_per_sec" in row]
    bottom = _TOP + _STEP * len(rows)
    marks = ticks(0.0, max(row["highest"] for row in rows))
    width, height = _LEFT + _WIDTH + _RIGHT, bottom + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    parts += _legend(rows)
    for mark in marks:
        x = _place(mark, marks)
        parts.append(f'<line x1="{x}" x2="{x}" y1="{_TOP}" y2="{bottom}" stroke="#e5e7eb"/>')
        parts.append(_text(x, bottom + 16, number(mark), "middle"))
    parts.append(_text(_LEFT + _WIDTH / 2, bottom + 34, "images per second, both views made of each", "middle"))
    for place, row in enumerate(rows):
        parts += _bar(row, _TOP + _STEP * place, marks)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(row: dict[str, Any], top: float, marks: Sequence[float]) -> list[str]:
    end, low, high = (_place(row[name], marks) for name in ("imgs_per_sec", "lowest", "highest"))
    middle = top + _STEP / 2
    colour = _COLOURS[row["kind"]]
    return [
        _text(_LEFT - 8, middle + 4, row["label"], "end"),
        f'<rect x="{_LEFT}" y="{top + 5}" width="{round(end - _LEFT, 1)}" height="{_STEP - 10}" fill="{colour}"/>',
        f'<line x1="{low}" x2="{high}" y1="{middle}" y2="{middle}" stroke="black" stroke-width="2"/>',
        _text(high + 6, middle + 4, f"{row['imgs_per_sec']:,.0f}", "start"),
    ]


def _legend(rows: Sequence[dict[str, Any]]) -> list[str]:
    parts, x = [], 12
    for kind, meaning in _KINDS.items():
        if any(row["kind"] == kind for row in rows):
            parts.append(f'<rect x="{x}" y="14" width="12" height="12" fill="{_COLOURS[kind]}"/>')
            parts.append(_text(x + 18, 25, meaning, "start"))
            x += 40 + 7 * len(meaning)
    return parts


def _place(value: float, marks: Sequence[float]) -> float:
    return round(_LEFT + _WIDTH * value / marks[-1], 1)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{round(y, 1)}" text-anchor="{anchor}">{escape(text)}</text>'
