"""Line charts as inline SVG; the page's style sheet sets their colours, so they follow its light and dark mode."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastmoco.report.curves import Chart, Series
from fastmoco.report.page import COLOURS, text

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 14, 38


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

    def curve(self, series: Series, chart: Chart) -> list[str]:
        colour = f"c{series.colour % COLOURS}" + (" again" if series.colour >= COLOURS else "")
        places = [self.place(x, y) for x, y in series.points]
        parts = [f'<polyline class="curve {colour}" points="{" ".join(f"{x},{y}" for x, y in places)}"/>']
        for (x, y), error in zip(series.points, series.errors, strict=False):
            (across, above), (_, below) = self.place(x, y + error), self.place(x, max(y - error, self.low))
            parts.append(f'<line class="error {colour}" x1="{across}" x2="{across}" y1="{above}" y2="{below}"/>')
        if not (chart.dots or len(places) == 1):
            return parts
        errors = [f" ± {error:.2g}" for error in series.errors] or [""] * len(places)
        for (x, y), (at, value), error in zip(places, series.points, errors, strict=True):
            hint = text(f"{series.name}, {chart.x_name} {number(at)}: {value:.4g}{error}{chart.unit}")
            parts.append(f'<circle class="dot {colour}" cx="{x}" cy="{y}" r="3.5"><title>{hint}</title></circle>')
        return parts


def draw(chart: Chart) -> str:
    """An <svg> element with the curves of a chart."""
    points = [point for series in chart.series for point in series.points]
    bounds = [y for _, y in points] + [level.value for level in chart.levels] + ([0.0] if chart.from_zero else [])
    for series in chart.series:
        for (_, y), error in zip(series.points, series.errors, strict=False):
            bounds += [y + error, max(0.0, y - error) if chart.from_zero else y - error]
    right = max(x for x, _ in points) or 1.0
    y_ticks, x_ticks = ticks(min(bounds), max(bounds)), [t for t in ticks(0.0, right) if t <= right * 1.0001]
    frame = _Frame(right, y_ticks[0], y_ticks[-1])
    title = f"{chart.title} by {chart.x_name}: {', '.join(series.name for series in chart.series)}"
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}">']
    parts += frame.axes(x_ticks, y_ticks, chart.x_name, chart.unit)
    labelled: list[float] = []
    for level in chart.levels:
        _, y = frame.place(0, level.value)
        parts.append(_rule("level", y))
        at = y - 7 if y > TOP + 16 else y + 16
        if all(abs(at - other) >= 14 for other in labelled):  # two labels on one another cannot be read
            parts.append(_text("level-text", WIDTH - RIGHT, at, "end", level.text))
            labelled.append(at)
    for series in chart.series:
        parts += frame.curve(series, chart)
    return "".join([*parts, "</svg>"])


def _rule(kind: str, y: float) -> str:
    return f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'


def _text(kind: str, x: float, y: float, anchor: str, words: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{round(y, 1)}" text-anchor="{anchor}">{text(words)}</text>'


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
