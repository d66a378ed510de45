"""The rows of `communication.py` as a Markdown table and as a chart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from _communication.ways import WAYS
from fastmoco.demo.charts import number

_LEFT, _WIDTH, _RIGHT, _TOP, _HEIGHT, _BOTTOM = 70, 460, 24, 74, 260, 46
_COLOURS = {"bf16": "#2563eb", "fp32": "#60a5fa", "original": "#9ca3af"}


def markdown(result: dict[str, Any]) -> str:
    """Tables of what was measured and of the formula, and what gave them."""
    settings, machine = result["settings"], result["environment"]
    lines = ["| ranks | | images, MB | index, kB | features, kB | ms | lowest to highest |"]
    lines.append("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for row in result["measured"]:
        spread = f"{row['lowest']:,.0f} to {row['highest']:,.0f}"
        lines.append(f"| {row['ranks']} | {_label(row)} | {_bytes(row)} | {row['ms']:,.0f} | {spread} |")
    lines += ["", "By the same formula, which the counts above agree with byte for byte:", ""]
    lines += ["| ranks | | images, MB | index, kB | features, kB |", "| ---: | --- | ---: | ---: | ---: |"]
    lines += [f"| {row['ranks']:,} | {_label(row)} | {_bytes(row)} |" for row in result["formula"]]
    lines += [
        "",
        f"Bytes that a rank receives in a step, its own share included, for {settings['batch']} images of a rank of "
        f"{settings['image_size']} pixels and {settings['features']} features; milliseconds of the slowest rank, the "
        f"median of {settings['repeats']} steps in turn, gloo between processes on {machine['cores']} cores "
        f"({machine['cpu']}), so with more processes than cores they show the work, not a network. "
        f"{machine['date']}, commit {machine['commit']}; Python {machine['python']}, torch "
        f"{machine['packages']['torch']}.",
    ]
    return "\n".join(lines) + "\n"


def _label(row: dict[str, Any]) -> str:
    return WAYS[row["way"]].label


def _bytes(row: dict[str, Any]) -> str:
    return f"{row['images'] / 1e6:,.1f} | {row['index'] / 1e3:,.1f} | {row['features'] / 1e3:,.0f}"


def chart(result: dict[str, Any]) -> str:
    """An SVG picture: megabytes of a rank's step by the number of ranks, both axes logarithmic; dots were measured."""
    rows = result["formula"]
    frame = _Frame([row["ranks"] for row in rows], [_megabytes(row) for row in rows])
    width, height = _LEFT + _WIDTH + _RIGHT, _TOP + _HEIGHT + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        *frame.grid(),
    ]
    for place, (name, way) in enumerate(WAYS.items()):
        points = [frame.place(row["ranks"], _megabytes(row)) for row in rows if row["way"] == name]
        line = " ".join(f"{x},{y}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{_COLOURS[name]}" stroke-width="2"/>')
        for row in (row for row in result["measured"] if row["way"] == name):
            x, y = frame.place(row["ranks"], _megabytes(row))
            parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{_COLOURS[name]}"/>')
        parts.append(f'<rect x="12" y="{10 + 18 * place}" width="12" height="12" fill="{_COLOURS[name]}"/>')
        parts.append(_text(30, 21 + 18 * place, way.label, "start"))
    parts.append(_text(_LEFT + _WIDTH / 2, height - 8, "ranks (dots: counted; lines: formula)", "middle"))
    parts.append(_text(_LEFT + _WIDTH, 21, "megabytes that a rank receives in a step", "end"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _megabytes(row: dict[str, Any]) -> float:
    return (row["images"] + row["index"] + row["features"]) / 1e6


class _Frame:
    """Logarithmic axes that cover the values."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        self.left, self.right = math.log2(min(xs)), math.log2(max(xs))
        self.low, self.high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))

    def place(self, x: float, y: float) -> tuple[float, float]:
        across = _LEFT + _WIDTH * (math.log2(x) - self.left) / (self.right - self.left)
        return round(across, 1), round(_TOP + _HEIGHT * (self.high - math.log10(y)) / (self.high - self.low), 1)

    def grid(self) -> list[str]:
        parts = []
        for power in range(self.low, self.high + 1):
            x, y = self.place(2**self.left, 10**power)
            parts.append(f'<line x1="{x}" x2="{_LEFT + _WIDTH}" y1="{y}" y2="{y}" stroke="#e5e7eb"/>')
            parts.append(_text(_LEFT - 8, y + 4, number(10.0**power), "end"))
        for power in range(round(self.left), round(self.right) + 1):
            x, y = self.place(2**power, 10**self.low)
            parts.append(_text(x, y + 18, number(2.0**power), "middle"))
        return parts


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{round(y, 1)}" text-anchor="{anchor}">{escape(text)}</text>'
