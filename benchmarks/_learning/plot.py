"""The rows of `learning.py` as a picture: our points with their spread on the left, the paper's on the right."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from _learning.experiments import Experiment, Scale
from _learning.paper import REPORTED
from _learning.table import Rows, before_training, last_rows
from fastmoco.demo.charts import number, ticks

_WIDTH, _HEIGHT, _TOP, _BOTTOM, _LEFT, _RIGHT = 330, 240, 74, 58, 50, 20
_COLOURS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea")


@dataclass(frozen=True)
class Point:
    """A place on the x axis and the values of all seeds there, in percent."""

    at: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """One picture of the two.

    Attributes:
        title: what is measured, and where.
        places: of the x axis, in their order.
        series: points of each line, by name.
        level: a value to compare with, and what it stands for.
        fails: places where training fails, without a value.
    """

    title: str
    places: tuple[str, ...]
    series: dict[str, list[Point]]
    level: tuple[float, str] | None = None
    fails: tuple[str, ...] = ()


def plot(name: str, experiment: Experiment, scale: Scale, set_name: str, rows: Rows) -> str:
    """An SVG picture; the paper's panel is left out where it has no figures."""
    panels = [_ours(experiment, scale, set_name, rows)]
    if REPORTED.get(name):
        panels.append(_papers(name, experiment))
    names = list(dict.fromkeys(series for panel in panels for series in panel.series))
    colours = {series: _COLOURS[place % len(_COLOURS)] for place, series in enumerate(names)}
    each, height = _LEFT + _WIDTH + _RIGHT, _TOP + _HEIGHT + _BOTTOM
    width = each * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="{escape(experiment.title, quote=True)}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(12, 20, experiment.title, "start", 'font-size="15"'),
    ]
    parts.append(_text(width - 12, 20, "dots: means; rings: seeds", "end", 'fill="#4b5563"'))
    x = 12
    for series, colour in colours.items():
        parts.append(f'<rect x="{x}" y="32" width="11" height="11" fill="{colour}"/>')
        parts.append(_text(x + 17, 42, series, "start"))
        x += 40 + 7 * len(series)
    for place, panel in enumerate(panels):
        parts.append(f'<g transform="translate({place * each} 0)">')
        parts += [*_Frame(panel).drawn(panel, colours, experiment.lines, experiment.x_name), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _ours(experiment: Experiment, scale: Scale, set_name: str, rows: Rows) -> Panel:
    variants, series = experiment.variants[scale], {}
    for name, found in last_rows(rows).items():
        variant = variants[name]
        knn = Point(variant.at, tuple(row["knn_top1"] for row in found))
        series.setdefault("kNN" if experiment.linear else variant.series, []).append(knn)
        for probe, label in (("linear", "linear"), ("fast", "linear --fast")):
            values = tuple(row[f"{probe}_top1"] for row in found if row[f"{probe}_top1"] != "")
            if values:
                series.setdefault(label, []).append(Point(variant.at, values))
    untrained = before_training(rows)
    level = (statistics.mean(untrained), "before training") if untrained else None
    shown = [variant.at for name, variant in variants.items() if name in last_rows(rows)]
    probes = "kNN and linear" if experiment.linear else "kNN"
    where = set_name or "here"
    return Panel(f"{where}: {probes} top-1, %", tuple(dict.fromkeys(shown)), series, level)


def _papers(name: str, experiment: Experiment) -> Panel:
    series: dict[str, list[Point]] = {}
    for told in REPORTED[name]:
        if told.top1 is not None:
            key = "linear" if experiment.linear else told.series
            series.setdefault(key, []).append(Point(told.at, (told.top1,)))
    places = tuple(dict.fromkeys(told.at for told in REPORTED[name]))
    fails = tuple(told.at for told in REPORTED[name] if told.top1 is None)
    return Panel("the paper: linear top-1 on ImageNet-1M, %", places, series, fails=fails)


class _Frame:
    """Axes that cover a panel's values; the places of the x axis stand side by side."""

    def __init__(self, panel: Panel) -> None:
        values = [v for points in panel.series.values() for point in points for v in point.values]
        marks = ticks(min([*values, *([panel.level[0]] if panel.level else [])]), max(values))
        self.marks, self.low, self.high = marks, marks[0], marks[-1]
        self.places = panel.places

    def x(self, at: str, shift: float = 0.0) -> float:
        return round(_LEFT + _WIDTH * (self.places.index(at) + 0.5) / len(self.places) + shift, 1)

    def y(self, value: float) -> float:
        return round(_TOP + _HEIGHT * (self.high - value) / (self.high - self.low), 1)

    def drawn(self, panel: Panel, colours: dict[str, str], lines: bool, x_name: str) -> list[str]:
        parts = [_text(_LEFT, _TOP - 12, panel.title, "start")]
        for mark in self.marks:
            parts.append(_rule(self.y(mark), "#e5e7eb"))
            parts.append(_text(_LEFT - 8, self.y(mark) + 4, number(mark), "end"))
        if panel.level:
            y = self.y(panel.level[0])
            parts.append(_rule(y, "#6b7280", 'stroke-dasharray="5 4"'))
            parts.append(_text(_LEFT + _WIDTH, y - 5, panel.level[1], "end", 'fill="#4b5563"'))
        for turn, at in enumerate(panel.places):
            crowded = sum(map(len, panel.places)) > 44
            parts.append(_text(self.x(at), _TOP + _HEIGHT + 18 + (14 * (turn % 2) if crowded else 0), at, "middle"))
        if x_name:
            parts.append(_text(_LEFT + _WIDTH / 2, _TOP + _HEIGHT + 50, x_name, "middle"))
        for at in panel.fails:
            parts.append(_text(self.x(at), _TOP + _HEIGHT - 8, "fails", "middle", 'fill="#b91c1c"'))
        for turn, (series, points) in enumerate(panel.series.items()):
            shift = 7 * (turn - (len(panel.series) - 1) / 2)
            parts += self._series(points, colours[series], lines, shift)
        return parts

    def _series(self, points: Sequence[Point], colour: str, lines: bool, shift: float) -> list[str]:
        """Every seed as a ring, the mean as a dot, a bar from the lowest to the highest."""
        parts, means = [], []
        for point in points:
            x, mean = self.x(point.at, shift), statistics.mean(point.values)
            means.append(f"{x},{self.y(mean)}")
            if len(point.values) > 1:
                ends = self.y(min(point.values)), self.y(max(point.values))
                parts.append(f'<line x1="{x}" x2="{x}" y1="{ends[0]}" y2="{ends[1]}" stroke="{colour}"/>')
                for value in point.values:
                    parts.append(f'<circle cx="{x}" cy="{self.y(value)}" r="3" fill="white" stroke="{colour}"/>')
            hint = f"<title>{escape(point.at)}: {mean:.1f}</title>"
            parts.append(f'<circle cx="{x}" cy="{self.y(mean)}" r="4" fill="{colour}">{hint}</circle>')
        if lines and len(means) > 1:
            line = f'<polyline points="{" ".join(means)}" fill="none" stroke="{colour}" stroke-width="2"/>'
            parts.insert(0, line)
        return parts


def _rule(y: float, colour: str, more: str = "") -> str:
    return f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y}" y2="{y}" stroke="{colour}" {more}/>'


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{round(x, 1)}" y="{round(y, 1)}" text-anchor="{anchor}" {more}>{escape(text)}</text>'
