"""The table of runs in a terminal, and as plain text for a pipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from fastmoco.report.pages import when
from fastmoco.report.record import RunRecord
from shards.words import display

SORTS: dict[str, Callable[[RunRecord], tuple[object, ...]]] = {
    "when": lambda run: (-run.started.timestamp(), run.name),
    "run": lambda run: (run.name,),
    "knn": lambda run: (-run.knn()[-1][1].percent if run.knn() else 1.0, run.name),
    "loss": lambda run: (_or_last(run.last("loss")), run.name),
    "speed": lambda run: (-(run.rate() or 0.0), run.name),
}
"""Orders of the table; the best is first."""


@dataclass(frozen=True)
class _Column:
    name: str
    value: Callable[[RunRecord], str]
    needed: int  # the columns with the highest numbers are left out first where a terminal is too narrow
    right: bool = True


def _or_last(value: float | None) -> float:
    return float("inf") if value is None else value


def _of(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _steps(run: RunRecord) -> str:
    return f"{run.step:,}" if run.total_steps is None else f"{run.step:,}/{run.total_steps:,}"


def _best(run: RunRecord) -> str:
    return str(max((accuracy for _, accuracy in run.knn()), key=lambda accuracy: accuracy.percent, default=""))


_COLUMNS = (
    _Column("run", lambda run: display(run.name), 0, right=False),
    _Column("recipe", lambda run: display(str(run.settings.get("recipe", run.kind))), 6, right=False),
    _Column("encoder", lambda run: display(str(run.settings.get("arch") or "")), 7, right=False),
    _Column("state", lambda run: run.state, 1, right=False),
    _Column("step", _steps, 2),
    _Column("loss", lambda run: _of(run.last("loss"), "{:.3f}"), 3),
    _Column("kNN top-1", lambda run: str(run.knn()[-1][1]) if run.knn() else "", 4),
    _Column("best", _best, 8),
    _Column("images/s", lambda run: _of(run.rate(), "{:,.0f}"), 5),
    _Column("data wait", lambda run: _of(run.wait(), "{:.0%}"), 9),
    _Column("when (UTC)", when, 10),
)
_WARNINGS = _Column("warnings", lambda run: display(",".join(name for name, _ in run.warnings)), 11, right=False)
"""For programs; in a terminal `remarks` says more."""


def table(runs: Sequence[RunRecord], console: Console, plain: bool) -> Table:
    """The table of runs, with as many columns as the console is wide enough for.

    Args:
        runs: its rows, in order.
        console: where it is shown.
        plain: all columns, without lines: for programs.
    """
    columns = [*_COLUMNS, *([_WARNINGS] if plain else [])]
    while True:
        made = _table(runs, columns, plain)
        width = Measurement.get(console, console.options.update(width=10_000), made).maximum
        if plain or width <= console.width or len(columns) <= 4:
            return made
        columns.remove(max(columns, key=lambda column: column.needed))


def remarks(runs: Sequence[RunRecord]) -> list[str]:
    """Lines below the table: why runs failed, and what harms them."""
    lines = []
    for run in runs:
        if run.state == "failed" and run.reason:
            lines.append(display(f"{run.name} failed: {run.reason}"))
        lines += [display(f"{run.name} {name}: {message}") for name, message in run.warnings]
    return lines


def _table(runs: Sequence[RunRecord], columns: Sequence[_Column], plain: bool) -> Table:
    made = Table(box=None if plain else box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2 if plain else 1, 0, 0))
    for column in columns:
        # the run's name alone may take several lines
        fold = column.needed == 0 and not plain
        made.add_column(column.name, justify="right" if column.right else "left", no_wrap=not fold, overflow="fold")
    for run in runs:
        made.add_row(*(Text(column.value(run)) for column in columns))
    return made
