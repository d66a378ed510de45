"""The curves of runs as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastmoco.flags import ConfigError
from fastmoco.report.curves import Chart
from fastmoco.results import check_file


def check(path: Path) -> None:
    """Raise ConfigError if the PNG cannot be written, or matplotlib is missing."""
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--png {path} does not end in .png; give the name of a PNG")
    check_file("--png", path)
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError("--png needs matplotlib: pip install 'fastmoco[plot]'") from error


def write(charts: Sequence[Chart], names: Sequence[str], path: Path) -> None:
    """Draw charts in two columns.

    Args:
        charts: at least one.
        names: of the runs, by the numbers of the curves' colours; shown if there are several.
        path: of the PNG.
    """
    # not pyplot, which would look for a display
    from matplotlib.figure import Figure

    rows = -(-len(charts) // 2)
    figure = Figure(figsize=(11, 3.2 * rows + 0.4), dpi=110, layout="constrained")
    places = figure.subplots(rows, 2, squeeze=False).flat
    for chart, axes in zip(charts, places, strict=False):
        for series in chart.series:
            x, y = zip(*series.points, strict=True)
            style = {"color": f"C{series.colour}", "marker": "o" if chart.dots else None, "markersize": 4}
            axes.errorbar(x, y, yerr=list(series.errors) or None, linewidth=1.6, capsize=2, **style)
        for level in chart.levels:
            axes.axhline(level.value, color="0.4", linestyle="--", linewidth=1)
            axes.annotate(_literal(level.text), (1, level.value), xycoords=("axes fraction", "data"), ha="right",
                          va="bottom", fontsize=8)  # fmt: skip
        axes.set(title=_literal(chart.title + (f" in{chart.unit}" if chart.unit else "")), xlabel=chart.x_name)
        axes.grid(alpha=0.3)
        if chart.from_zero:
            axes.set_ylim(bottom=0)
    for axes in list(figure.axes)[len(charts) :]:
        axes.remove()
    if len(names) > 1:
        lines = [figure.axes[0].plot([], [], color=f"C{place}")[0] for place in range(len(names))]
        figure.legend(lines, [_literal(name) for name in names], loc="outside upper center", ncols=min(4, len(names)))
    figure.savefig(path, format="png")


def _literal(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")
