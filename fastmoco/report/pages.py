"""The page of a run, or of several side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastmoco.config import ConfigError
from fastmoco.recipes import recipe
from fastmoco.report import rows
from fastmoco.report.charts import draw
from fastmoco.report.curves import POINTS, Chart, charts_of
from fastmoco.report.page import folded, grid, page, picture, section, swatch, table, text, tile
from fastmoco.report.record import RunRecord, differing
from fastmoco.report.words import about_loss, verdict
from fastmoco.settings import plain

REFRESH = 20
"""Seconds after which a browser reads the page of a running run again."""
_COLLAPSED = 0.02
_LENGTH = ("ranks", "steps_per_epoch", "total_steps")


def page_of(runs: Sequence[RunRecord], watched: bool = False) -> str:
    """The HTML page of runs, read from their folders at this moment.

    Args:
        runs: one or more.
        watched: whether the page is written again as the runs go on, so that a browser should read it again.
    """
    charts = charts_of(runs)
    body = [_head(runs), _curves(runs, charts), *map(_views, runs), *map(_neighbours, runs)]
    body += [_settings(runs), _environment(runs)]
    again = REFRESH if watched and any(run.state in ("starting", "running") for run in runs) else None
    title = runs[0].name if len(runs) == 1 else ", ".join(run.name for run in runs)
    return page(f"{title} · fastmoco", [part for part in body if part], again)


def state_in_words(run: RunRecord) -> str:
    """Where a run stands, as `stopped at step 5 of 100`."""
    of = "" if run.total_steps is None else f" of {run.total_steps:,}"
    done = f"step {run.step:,}{of}"
    return {
        "finished": f"finished after {run.step:,} steps",
        "running": f"running, at {done}",
        "stopped": f"stopped at {done}",
        "failed": f"failed at {done}",
        "lost": f"lost at {done}: its process ended without a word",
        "starting": "starting",
    }[run.state]


def when(run: RunRecord) -> str:
    """When a run was last started, in UTC."""
    return run.started.strftime("%Y-%m-%d %H:%M")


def _head(runs: Sequence[RunRecord]) -> str:
    if len(runs) > 1:
        heads = [swatch(colour) + text(run.name) for colour, run in enumerate(runs)]
        return f"<h1>{len(runs)} runs</h1>\n" + section("Results", "", grid(heads, _results(runs)))
    (run,) = runs
    knn, loss, rate = run.knn(), run.last("loss"), run.rate()
    tiles = []
    if knn:
        before = f"<i>{text(knn[0][1])} →</i> " if len(knn) > 1 else ""
        tiles.append(tile(f"{before}<em>{text(knn[-1][1])}</em>", "kNN top-1 ± standard error", main=True))
    if loss is not None:
        chance = "" if run.chance is None else f"; chance is {run.chance:.2f}"
        tiles.append(tile(f"{loss:.3f}", f"loss{chance}"))
    if rate is not None:
        tiles.append(tile(f"{rate:,.0f}", "images per second, median"))
    if (wait := run.wait()) is not None:
        tiles.append(tile(f"{100 * wait:.0f} %", "of the time waiting for data"))
    said = [f"{state_in_words(run).capitalize()}. Started {when(run)} UTC."]
    if run.state == "failed" and run.reason:
        said.append(f"Reason: {run.reason}")
    said += [f"Warning: {message}" for _, message in run.warnings]
    back = [record["rollback"] for record in run.records if isinstance(record.get("rollback"), dict)]
    if back:
        steps = ", ".join(f"{each.get('to')} (from {each.get('found')})" for each in back)
        said.append(f"Values were not finite: the run went back to step {steps} and skipped the batches since.")
    if len(knn) > 1 and knn[0][0]["step"] == 0:
        said.append(verdict(knn[0][1], knn[-1][1]))
    elif run.kind == "pretraining" and not knn:
        said.append("There is no kNN accuracy: the run has no labelled set to classify (--knn-every, --knn-val).")
    spread = run.last("spread")
    if spread is not None and spread < _COLLAPSED:
        said.append(f"The spread is {spread:.4f}: the keys of a batch are nearly equal, the features have collapsed.")
    words = "".join(f"<p>{text(sentence)}</p>" for sentence in said)
    return f"<h1>{text(run.name)}</h1>\n{words}\n<div class='tiles'>{''.join(tiles)}</div>"


def _results(runs: Sequence[RunRecord]) -> dict[str, list[object]]:
    def of(value: float | None, form: str) -> str:
        return "" if value is None else form.format(value)

    knn = [run.knn() for run in runs]
    table: dict[str, list[object]] = {
        "state": [state_in_words(run) for run in runs],
        "when (UTC)": [when(run) for run in runs],
        "recipe": [run.settings.get("recipe", "") for run in runs],
        "encoder": [run.settings.get("arch") or "" for run in runs],
        "loss": [of(run.last("loss"), "{:.3f}") for run in runs],
        "loss at chance": [of(run.chance, "{:.3f}") for run in runs],
        "kNN top-1, last": [probes[-1][1] if probes else "" for probes in knn],
        "kNN top-1, best": [max((a for _, a in probes), key=lambda a: a.percent) if probes else "" for probes in knn],
        "spread": [of(run.last("spread"), "{:.2f}") for run in runs],
        "images per second": [of(run.rate(), "{:,.0f}") for run in runs],
        "waiting for data": [of(None if run.wait() is None else 100 * (run.wait() or 0.0), "{:.0f} %") for run in runs],
    }
    return {name: values for name, values in table.items() if any(value != "" for value in values)}


def _curves(runs: Sequence[RunRecord], charts: Sequence[Chart]) -> str:
    if not charts:
        return section("Training", "There are no figures yet.")
    if len(runs) == 1:
        (run,) = runs
        losses = [value for _, value in run.values("loss")]
        fill = run.last("queue_fill") if run.settings.get("mechanism", "queue") == "queue" else None
        about = about_loss(losses, run.chance, fill) if losses else ""
        legend = ""
    else:
        about = "Bars at kNN top-1 are standard errors. Chance (dashed) is the loss if an encoder could tell nothing."
        names = (f"<span>{swatch(colour)}{text(run.name)}</span>" for colour, run in enumerate(runs))
        legend = f'<div class="legend">{"".join(names)}</div>'
    if any(len(run.records) > POINTS for run in runs):
        about += f" Longer curves are drawn as {POINTS} means."
    drawn = "".join(f"<div><h3>{text(chart.title)}</h3>{draw(chart)}</div>" for chart in charts)
    return section("Training", text(about), legend, f'<div class="two">{drawn}</div>')


def _views(run: RunRecord) -> str:
    with contextlib.suppress(OSError):
        data = (run.folder / "views.png").read_bytes()
        size = run.settings.get("image_size")
        about = f"Pairs of views of {run.name} as the model receives them" + (f", {size} pixels wide." if size else ".")
        return section("Two views of each image", text(about), picture(data, "png", "Pairs of views", "views"))
    return ""


def _neighbours(run: RunRecord) -> str:
    found = rows.load(run.folder)
    if found is None or not found[1]:
        return ""
    step, lines = found
    title = text(f"{run.name} after {step:,} steps")
    about = rows.explained(any(row.right is not None for row in lines))
    return section("Nearest neighbours", about, f'<div class="narrow">{rows.grid_of(title, lines)}</div>')


def _settings(runs: Sequence[RunRecord]) -> str:
    if len(runs) > 1:
        return _side_by_side("Settings", runs, [run.settings for run in runs])
    (run,) = runs
    if not run.settings:
        return section("Settings", "The run has no readable config.json.")
    base = _recipe_of(run)
    changed = [(name, value) for name, value in run.settings.items() if name in base and base[name] != value]
    others = [(name, value) for name, value in run.settings.items() if (name, value) not in changed]
    if not base:
        return section("Settings", "", table(_shown(others)))
    shown = (f"{_value(value)} (recipe: {_value(base[name])})" for name, value in changed)
    first = table(zip((name for name, _ in changed), shown, strict=True)) if changed else "<p>None.</p>"
    about = f"Those that differ from the recipe {run.settings['recipe']}; the others are folded."
    return section("Settings", text(about), first, folded(f"{len(others)} as in the recipe", table(_shown(others))))


def _recipe_of(run: RunRecord) -> dict[str, Any]:
    """The settings of the run's recipe; empty for runs that have none that is known."""
    with contextlib.suppress(ConfigError):
        if run.kind == "pretraining" and isinstance(run.settings.get("recipe"), str):
            return plain(recipe(run.settings["recipe"]))
    return {}


def _environment(runs: Sequence[RunRecord]) -> str:
    if len(runs) > 1:
        return _side_by_side("Environment", runs, [_flat(run) for run in runs])
    return section("Environment", "What the run was made with.", table(environment_of(runs[0])))


def environment_of(run: RunRecord) -> list[tuple[str, str]]:
    """What a run was made with, as names and values."""
    return _shown(_flat(run).items())


def _flat(run: RunRecord) -> dict[str, Any]:
    made = {name: value for name, value in run.environment.items() if name not in ("packages", *_LENGTH)}
    packages = run.environment.get("packages")
    made |= {name: run.environment[name] for name in _LENGTH if name in run.environment}
    return {"folder": str(run.folder), **made, **(packages if isinstance(packages, dict) else {})}


def _side_by_side(title: str, runs: Sequence[RunRecord], values: Sequence[Mapping[str, Any]]) -> str:
    """Rows that differ first, the others folded."""
    different = differing(values)
    names = dict.fromkeys(name for each in values for name in each)
    heads = [swatch(colour) + text(run.name) for colour, run in enumerate(runs)]
    apart = {name: [_value(each.get(name)) for each in values] for name in names if name in different}
    alike = [(name, _value(values[0][name])) for name in names if name not in different]
    about = "Where the runs differ; what is the same is folded." if apart else "The runs do not differ."
    content = [grid(heads, apart)] if apart else []
    return section(title, about, *content, folded(f"{len(alike)} that are the same", table(alike)))


def _shown(rows: Iterable[tuple[str, Any]]) -> list[tuple[str, str]]:
    return [(name, _value(value)) for name, value in rows]


def _value(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if value is None or isinstance(value, bool):
        return {True: "on", False: "off", None: "–"}[value]
    return str(value)


def default_path(runs: Sequence[RunRecord]) -> Path:
    """Where a page is written by default: into the folder of one run; of several, into the current folder."""
    if len(runs) > 1:
        return Path("runs.html")
    # a demo's folder has a report of its own
    return runs[0].folder / ("run.html" if (runs[0].folder / "demo.json").exists() else "report.html")
