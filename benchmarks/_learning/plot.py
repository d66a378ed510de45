"""The rows of `learning.py` as a chart: our points with their spread beside the paper's, or curves by epoch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from _charts import BLUE, GREEN, ORANGE, PURPLE, RED, SOFT, panels
from _learning.curves import curves
from _learning.experiments import Experiment, Scale, Variant
from _learning.paper import REPORTED
from _learning.table import Rows, before_training, last_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
APART = 0.06  # offset between series at the same position, as a share of the space between positions


@dataclass(frozen=True)
class Point:
    """The values of all seeds at one position of the x axis, in percent."""

    at: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of the seeds."""
        return statistics.mean(self.values)


@dataclass(frozen=True)
class Panel:
    """One of the two charts.

    Attributes:
        title: the measure, and the set.
        places: positions of the x axis, in order.
        series: points of each line, by name.
        level: a reference value and its label.
        fails: positions at which training fails, without a value.
    """

    title: str
    places: tuple[str, ...]
    series: dict[str, list[Point]]
    level: tuple[float, str] | None = None
    fails: tuple[str, ...] = ()


def plot(name: str, experiment: Experiment, scale: Scale, set_name: str, rows: Rows) -> Figure:
    """A figure with a panel of our results, and one of the paper's if it reports any; or the accuracy by epoch."""
    if experiment.by_epoch:
        return curves(experiment, set_name, rows, COLOURS)
    shown = [_ours(experiment, scale, set_name, rows)]
    if REPORTED.get(name):
        shown.append(_papers(name, experiment))
    names = dict.fromkeys(series for panel in shown for series in panel.series)
    colours = {series: COLOURS[place % len(COLOURS)] for place, series in enumerate(names)}
    with panels(len(shown), None, 3.8) as (figure, axes):
        for panel, place in zip(shown, axes, strict=True):
            _draw(place, panel, colours, experiment)
        # one legend for both panels: a series has the same colour here and in the paper's panel
        keys = {label: line for place in axes for line, label in zip(*place.get_legend_handles_labels(), strict=True)}
        figure.text(0.985, 0.975, "dots: means; rings: seeds", color=SOFT, ha="right", va="top")
        figure.legend(
            [keys[series] for series in names], list(names), loc="outside upper left",
            ncols=min(len(names), 2 * len(shown)),
            title=experiment.title, title_fontsize=12, alignment="left", handlelength=1.2,
        )  # fmt: skip
    return figure


def _ours(experiment: Experiment, scale: Scale, set_name: str, rows: Rows) -> Panel:
    variants, series, ends = experiment.variants[scale], {}, last_rows(rows)
    for name, found in ends.items():
        variant = variants[name]
        knn = Point(variant.at, tuple(row["knn_top1"] for row in found))
        series.setdefault("kNN" if experiment.linear else variant.series, []).append(knn)
        for probe, label in (("linear", "linear"), ("fast", "linear --fast")):
            values = tuple(row[f"{probe}_top1"] for row in found if row[f"{probe}_top1"] != "")
            if values:
                series.setdefault(label, []).append(Point(variant.at, values))
    untrained = before_training(rows)
    if experiment.compared or experiment.starts:
        level, series = None, _before(variants, rows) | series
    else:
        level = (statistics.mean(untrained), "before training") if untrained else None
    shown = [variant.at for name, variant in variants.items() if name in ends]
    probes = "kNN and linear" if experiment.linear else "kNN"
    return Panel(f"{set_name or 'here'}: {probes} top-1, %", tuple(dict.fromkeys(shown)), series, level)


def _before(variants: Mapping[str, Variant], rows: Rows) -> dict[str, list[Point]]:
    """Points of the untrained encoders."""
    series = {}
    for name, found in last_rows(rows).items():
        knn = before_training([row for row in rows if row["variant"] == name])
        linear = [value for row in found if (value := row.get("untrained_fast_top1", "")) != ""]
        for label, values in (("kNN, untrained", knn), ("linear --fast, untrained", linear)):
            if values:
                series.setdefault(label, []).append(Point(variants[name].at, tuple(values)))
    return series


def _papers(name: str, experiment: Experiment) -> Panel:
    series: dict[str, list[Point]] = {}
    for reported in REPORTED[name]:
        if reported.top1 is not None:
            key = "linear" if experiment.linear else reported.series
            series.setdefault(key, []).append(Point(reported.at, (reported.top1,)))
    places = tuple(dict.fromkeys(reported.at for reported in REPORTED[name]))
    fails = tuple(reported.at for reported in REPORTED[name] if reported.top1 is None)
    return Panel("the paper: linear top-1 on ImageNet-1M, %", places, series, fails=fails)


def _draw(axes: Axes, panel: Panel, colours: dict[str, str], experiment: Experiment) -> None:
    for turn, (series, points) in enumerate(panel.series.items()):
        x = [panel.places.index(point.at) + APART * (turn - (len(panel.series) - 1) / 2) for point in points]
        colour, means = colours[series], [point.mean for point in points]
        joined = "-" if experiment.lines else "none"
        axes.plot(x, means, marker="o", markersize=6, linestyle=joined, color=colour, label=series)
        for place, point in zip(x, points, strict=True):
            if len(point.values) > 1:
                axes.vlines(place, min(point.values), max(point.values), color=colour, linewidth=1)
                rings = {"facecolors": "white", "edgecolors": colour, "linewidths": 1}
                axes.scatter([place] * len(point.values), point.values, s=20, zorder=1.5, **rings)
    if panel.level:
        value, meaning = panel.level
        axes.axhline(value, color=SOFT, linewidth=1, linestyle=(0, (5, 4)), zorder=1)
        axes.annotate(meaning, (1, value), (0, 3), color=SOFT, ha="right", xycoords=("axes fraction", "data"),
                      textcoords="offset points")  # fmt: skip
    for at in panel.fails:
        where = axes.get_xaxis_transform()
        axes.text(panel.places.index(at), 0.03, "fails", color=RED, ha="center", transform=where)
    crowded = sum(map(len, panel.places)) > 44  # then every second label is one line lower, and meets no other
    names = [f"\n{at}" if crowded and turn % 2 else at for turn, at in enumerate(panel.places)]
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xlabel(experiment.x_name)
    axes.set_title(panel.title)
    axes.grid(axis="y")
