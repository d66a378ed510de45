"""Charts of benchmark rows, drawn by matplotlib and written as SVG."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from _command import BenchmarkError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, LIGHT_BLUE, ORANGE, GREEN, PURPLE = "#2563eb", "#60a5fa", "#ea580c", "#16a34a", "#9333ea"
AMBER, GREY, STONE, RED, BLACK = "#f59e0b", "#9ca3af", "#d6d3d1", "#b91c1c", "#111827"
SOFT, GRID = "#4b5563", "#e5e7eb"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the layout is the same on every machine
    "font.size": 9.0,
    "text.color": BLACK,
    "axes.labelcolor": BLACK,
    "axes.labelsize": "medium",
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": GRID,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": BLACK,
    "ytick.labelcolor": BLACK,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small files, words that can be searched and compared
    "svg.hashsalt": "fastmoco",  # ids in the file are random otherwise
}


def require() -> None:
    """Raise BenchmarkError where matplotlib is missing: before anything is measured, not after."""
    if find_spec("matplotlib") is None:
        raise BenchmarkError("charts are drawn by matplotlib, which is not installed: pip install 'fastmoco[bench]'")


@contextlib.contextmanager
def panels(count: int, width: float | None, height: float) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of `count` axes side by side; in the block matplotlib draws in this module's style.

    Its background is white instead of transparent: dark text on a light card can be read on a page of any colour.

    Args:
        count: number of axes.
        width: of the figure, in inches; None: by the number of axes, with room for a title.
        height: of the figure, in inches.
    """
    require()
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08, wspace=0.03)
        figure = Figure(figsize=(width or max(5.6, 4.2 * count), height), facecolor="white", layout=layout)
        yield figure, list(figure.subplots(1, count, squeeze=False)[0])


def svg(figure: Figure) -> str:
    """The figure as SVG text, byte for byte the same for the same rows and the same version of matplotlib."""
    from matplotlib import rc_context

    text = io.StringIO()
    # again, because the settings of SVG are read when the figure is saved
    with rc_context(STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
