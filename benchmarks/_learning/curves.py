"""The rows of an experiment by epoch as a chart: kNN accuracy, and the keys' spread where the rows have it."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import TYPE_CHECKING

from _charts import SOFT, panels
from _learning.experiments import Experiment
from _learning.table import Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {"knn_top1": "kNN top-1, %", "spread": "lowest spread of the keys since the probe before"}
"""Columns that are shown, with the title of their panel."""


def curves(experiment: Experiment, set_name: str, rows: Rows, colours: tuple[str, ...]) -> Figure:
    """A panel for each column of TITLES that the rows have: means of the seeds, and each seed as a thin line."""
    shown = [column for column in TITLES if any(row.get(column, "") != "" for row in rows)]
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    with panels(len(shown), None, 3.8) as (figure, axes):
        for column, place in zip(shown, axes, strict=True):
            for variant, colour in zip(variants, colours, strict=False):
                _draw(place, [row for row in rows if row["variant"] == variant], column, colour)
            name = f"{set_name}: " if set_name else ""
            place.set_title(name + TITLES[column])
            place.set_xlabel(experiment.x_name)
            place.grid(axis="y")
        figure.text(0.985, 0.975, "bold: means; thin: seeds", color=SOFT, ha="right", va="top")
        lines, names = axes[0].get_legend_handles_labels()
        figure.legend(
            lines, names, loc="outside upper left", ncols=len(names), title=experiment.title, title_fontsize=12,
            alignment="left", handlelength=1.2,
        )  # fmt: skip
    return figure


def _draw(axes: Axes, rows: Rows, column: str, colour: str) -> None:
    """A variant's lines."""
    by_epoch, by_seed = defaultdict(list), defaultdict(list)
    for row in rows:
        if row.get(column, "") != "":
            by_epoch[row["epoch"]].append(row[column])
            by_seed[row["seed"]].append((row["epoch"], row[column]))
    for points in by_seed.values():
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=0.8, alpha=0.5)
    epochs = sorted(by_epoch)
    means = [statistics.mean(by_epoch[epoch]) for epoch in epochs]
    axes.plot(epochs, means, color=colour, linewidth=2, marker="o", markersize=4, label=rows[0]["variant"])
