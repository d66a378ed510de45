"""What `fastmoco runs` does: the table, the page, the PNG, and watching."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live

from fastmoco import flags
from fastmoco.report import png
from fastmoco.report.curves import charts_of
from fastmoco.report.pages import default_path, page_of, state_in_words
from fastmoco.report.reading import read_runs, runs_below
from fastmoco.report.record import RunRecord
from fastmoco.report.terminal import SORTS, remarks, table
from fastmoco.results import check_file
from shards.storage.files import write_whole

NAME = "fastmoco runs"


@dataclass(frozen=True)
class Args:
    """The values of the flags.

    Attributes:
        runs: run folders; empty for those in ./runs.
        out: page to write.
        png: picture of the curves to write.
        neighbours: whether to compute nearest neighbours for runs that have none.
        watch: whether to go on until the runs end.
        every: seconds between looks at a watched run.
        sort: order of the table.
    """

    runs: tuple[Path, ...]
    out: Path | None = None
    png: Path | None = None
    neighbours: bool = False
    watch: bool = False
    every: float = 2.0
    sort: str = "when"


def run(args: Args) -> None:
    """Print the table, and write page and PNG; with --watch until the runs end."""
    flags.positive(args, "every")
    named = bool(args.runs)
    if not named:
        for name in ("out", "png", "neighbours", "watch"):
            given = getattr(args, name)
            flags.require(not given, f"--{name} is for runs that are named; give their folders: {NAME} RUN --{name}")
        found = runs_below(Path("runs"))
        flags.require(bool(found), f"there are no runs in ./runs; give their folders: {NAME} RUN …")
        _print(found, args.sort)
        return
    read_runs(args.runs)  # an error before anything is written
    check_file("--out", args.out)
    if args.png is not None:
        png.check(args.png)
    if args.neighbours:
        _compute_neighbours(args.runs)
    if args.watch:
        _watch(args)
    else:
        _renew(args)


def _renew(args: Args) -> None:
    runs = read_runs(args.runs)
    _print(runs, args.sort)
    print(f"page: {_write(args, runs)}" + (f", curves: {args.png}" if args.png else ""))


def _write(args: Args, runs: Sequence[RunRecord], watched: bool = False) -> Path:
    path = args.out or default_path(runs)
    write_whole(path, page_of(runs, watched).encode())
    charts = charts_of(runs)
    if args.png is not None and charts:
        png.write(charts, [run.name for run in runs], args.png)
    return path


def _print(runs: Sequence[RunRecord], sort: str) -> None:
    console = Console(highlight=False)
    plain = not console.is_terminal
    if plain:
        console = Console(highlight=False, width=10_000)  # a program reads whole rows
    ordered = sorted(runs, key=SORTS[sort])
    console.print(table(ordered, console, plain))
    if not plain:
        for line in remarks(ordered):
            console.print(line, markup=False)


def _watch(args: Args) -> None:
    """Renew what is shown as the runs go on, until none is running."""
    console = Console(highlight=False)

    def shown(runs: list[RunRecord]) -> None:
        live.update(table(sorted(runs, key=SORTS[args.sort]), console, plain=False), refresh=True)

    def said(runs: list[RunRecord]) -> None:
        for run in runs:
            loss = run.last("loss")
            print(f"{run.name}: {state_in_words(run)}" + ("" if loss is None else f", loss {loss:.4f}"), flush=True)

    def follow(show: Callable[[list[RunRecord]], None]) -> None:
        before = None
        while True:
            runs = read_runs(args.runs)
            now = [(run.state, len(run.records)) for run in runs]
            if now != before:
                _write(args, runs, watched=True)
                show(runs)
                before = now
            if not any(run.state in ("starting", "running") for run in runs):
                return
            time.sleep(args.every)

    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            follow(shown)
    else:
        follow(said)


def _compute_neighbours(folders: Sequence[Path]) -> None:
    from fastmoco.report.neighbours import compute
    from fastmoco.runs.log import set_up_logging

    set_up_logging()
    for folder in folders:
        compute(folder)
