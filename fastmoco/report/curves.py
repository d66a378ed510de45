"""The curves of runs: which figures are drawn, in which charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fastmoco.report.record import RunRecord

POINTS = 300
"""Points of a curve, at most: a chart is about that many pixels wide."""


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        name: what it is of.
        points: (x, y), sorted by x.
        errors: standard error of each y; empty for none.
        colour: number of its colour.
    """

    name: str
    points: Sequence[tuple[float, float]]
    errors: Sequence[float] = ()
    colour: int = 0


@dataclass(frozen=True)
class Level:
    """A horizontal reference line: its value and label."""

    value: float
    text: str


@dataclass(frozen=True)
class Chart:
    """Curves on common axes.

    Attributes:
        title: what the y axis shows.
        series: one or more curves.
        x_name: name of the x axis.
        unit: suffix of each number of the y axis.
        levels: reference lines.
        from_zero: whether the y axis starts at zero.
        dots: whether every point is marked.
    """

    title: str
    series: Sequence[Series]
    x_name: str = "epoch"
    unit: str = ""
    levels: Sequence[Level] = ()
    from_zero: bool = False
    dots: bool = False


@dataclass(frozen=True)
class _Shown:
    title: str
    figures: tuple[str, ...]  # a name of a figure, or what it begins with up to a slash
    unit: str = ""
    factor: float = 1.0
    from_zero: bool = False
    dots: bool = False


_CHARTS = (
    _Shown("Loss", ("loss",)),
    _Shown("kNN top-1", ("knn_top1",), " %", from_zero=True, dots=True),
    _Shown("Top-1", ("top1",), " %", from_zero=True, dots=True),
    _Shown("Average precision", ("AP", "segm_AP"), from_zero=True, dots=True),
    _Shown("Spread of the keys", ("spread",), from_zero=True),
    _Shown("Images per second", ("imgs_per_sec",), from_zero=True),
    _Shown("Time spent waiting for data", ("data_wait",), " %", 100, from_zero=True),
)


def charts_of(runs: Sequence[RunRecord]) -> list[Chart]:
    """Charts of all figures that one of the runs has, with a curve for each run."""
    charts = []
    for shown in _CHARTS:
        series = [s for colour, run in enumerate(runs) for s in _series(run, shown, colour, several=len(runs) > 1)]
        if series:
            levels = _chance(runs) if shown.title == "Loss" else []
            charts.append(Chart(shown.title, series, "epoch", shown.unit, levels, shown.from_zero, shown.dots))
    return charts


def _series(run: RunRecord, shown: _Shown, colour: int, several: bool) -> list[Series]:
    names = dict.fromkeys(name for record in run.records for name in record if name.partition("/")[0] in shown.figures)
    series = []
    for name in names:
        values = run.values(name)
        if not values:
            continue
        points = [(record.get("epoch", record["step"]), shown.factor * value) for record, value in values]
        errors = [accuracy.error for _, accuracy in run.knn()] if name == "knn_top1" else []
        known = [error for error in errors if error is not None]
        label = " ".join(filter(None, [run.name if several else "", name.partition("/")[2]]))
        series.append(
            Series(label or run.name, thinned(points), known if len(known) == len(points) <= POINTS else [], colour)
        )
    return series


def _chance(runs: Sequence[RunRecord]) -> list[Level]:
    values = sorted({run.chance for run in runs if run.chance is not None and run.values("loss")})
    return [Level(value, f"chance = {value:.2f}") for value in values]


def thinned(points: Sequence[tuple[float, float]], count: int = POINTS) -> list[tuple[float, float]]:
    """At most `count` points: means over equal parts of longer curves."""
    if len(points) <= count:
        return list(points)
    cuts = [round(place * len(points) / count) for place in range(count + 1)]
    parts = [points[first:last] for first, last in pairwise(cuts)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]
