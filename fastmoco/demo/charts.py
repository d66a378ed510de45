"""Line charts as inline SVG; the page's style sheet sets their colours, so they follow its light and dark mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 38


@dataclass(frozen=True)
class Level:
    """A horizontal reference line: its value and label."""

    value: float
    text: str


@dataclass(frozen=True)
class _Frame:
    """The axes: their range of values, and the position of a value in the picture."""

    right: float
    low: float
    high: float

    def place(self, x: float, y: float) -> tuple[float, float]:
        across = LEFT + x / self.right * (WIDTH - LEFT - RIGHT)
        down = TOP + (self.high - y) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(down, 1)

    def axes(self, x_ticks: list[float], y_ticks: list[float], x_name: str, unit: str) -> list[str]:
        parts = []
        for tick in y_ticks:
            _, y = self.place(0, tick)
            parts.append(_rule("grid", y))
            parts.append(_text("tick", LEFT - 8, y + 4, "end", f"{number(tick)}{unit}"))
        for tick in x_ticks:
            x, _ = self.place(tick, self.low)
            parts.append(_text("tick", x, HEIGHT - BOTTOM + 18, "middle", number(tick)))
        parts.append(_text("tick", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, "middle", x_name))
        return parts


def line_chart(
    points: Sequence[tuple[float, float]], *, title: str, x_name: str, unit: str = "", level: Level | None = None,
    from_zero: bool = False, dots: bool = False,
) -> str:  # fmt: skip
    """Draw one curve.

    Args:
        points: (x, y), sorted by x; at least one.
        title: text for screen readers.
        x_name: name of the x axis.
        unit: suffix of each number of the y axis.
        level: a horizontal reference line.
        from_zero: whether the y axis starts at zero.
        dots: whether every point is marked.

    Returns:
        An <svg> element.
    """
    bounds = [y for _, y in points] + ([level.value] if level else []) + ([0.0] if from_zero else [])
    right = max(x for x, _ in points) or 1.0
    y_ticks, x_ticks = ticks(min(bounds), max(bounds)), [t for t in ticks(0.0, right) if t <= right * 1.0001]
    frame = _Frame(right, y_ticks[0], y_ticks[-1])
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">']
    parts += frame.axes(x_ticks, y_ticks, x_name, unit)
    if level:
        _, y = frame.place(0, level.value)
        parts.append(_rule("level", y))
        parts.append(_text("level-text", WIDTH - RIGHT, y - 7 if y > TOP + 16 else y + 16, "end", level.text))
    places = [frame.place(x, y) for x, y in points]
    parts.append(f'<polyline class="curve" points="{" ".join(f"{x},{y}" for x, y in places)}"/>')
    if dots or len(points) == 1:
        for (x, y), (at, value) in zip(places, points, strict=True):
            hint = escape(f"{x_name} {number(at)}: {value:.4g}{unit}")
            parts.append(f'<circle class="dot" cx="{x}" cy="{y}" r="3.5"><title>{hint}</title></circle>')
    return "".join([*parts, "</svg>"])


def _rule(kind: str, y: float) -> str:
    return f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'


def _text(kind: str, x: float, y: float, anchor: str, text: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{round(y, 1)}" text-anchor="{anchor}">{escape(text)}</text>'


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover low to high, in steps of 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / about))
    step = next(m * power for m in (1, 2, 5, 10) if span / (m * power) <= about)
    # divisions such as 0.3 / 0.1 miss whole numbers by a rounding
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """The label of a tick: up to six significant digits."""
    return f"{value:,.6g}"
