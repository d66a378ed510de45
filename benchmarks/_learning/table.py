"""The rows of `learning.py` as Markdown."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from _learning.experiments import Experiment, Scale, Variant
from _learning.paper import REPORTED, Reported
from _learning.runs import LINEAR, SETTINGS

SIZES = {"train_images": "training images", "val_images": "validation images", "classes": "classes"}
"""Columns that describe the sets, with their units."""
_SECONDS = "Seconds are those of the training, with start and probes, on a machine with other load."
HEADS = {"linear": "linear", "fast": "linear on centre crops (--fast)"}
Rows = Sequence[dict[str, Any]]


def table(name: str, experiment: Experiment, scale: Scale, rows: Rows) -> str:
    """Top-1 in percent by variant, with settings, provenance and the papers' figures."""
    if experiment.compared:
        return _with_untrained(name, rows)
    return _by_epoch(name, experiment, rows) if experiment.by_epoch else _by_variant(name, experiment, scale, rows)


def last_rows(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """The last row of each run, by variant."""
    ends = {(row["variant"], row["seed"]): row for row in rows}
    found = defaultdict(list)
    for (variant, _), row in ends.items():
        found[variant].append(row)
    return found


def before_training(rows: Rows) -> list[float]:
    """The kNN accuracies before training."""
    return [row["knn_top1"] for row in rows if row["epoch"] == 0 and row["step"] == 0]


def reported(name: str, variant: Variant) -> Reported | None:
    """The paper's result for a variant, or for the one at its position."""
    found = [r for r in REPORTED.get(name, ()) if r.at == variant.at and r.series in (variant.series, "linear")]
    return found[0] if found else None


def _by_variant(name: str, experiment: Experiment, scale: Scale, rows: Rows) -> str:
    ends, variants = last_rows(rows), experiment.variants[scale]
    several = len({variant.series for variant in variants.values()}) > 1
    probes = [probe for probe in LINEAR if any(row[f"{probe}_top1"] != "" for row in rows)]
    head = ["", "kNN top-1", "each seed", "before training", *(f"{HEADS[probe]} top-1" for probe in probes)]
    head += ["loss at the end", "seconds", "the paper: linear on ImageNet"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for variant, found in ends.items():
        place = f"{experiment.x_name} {variants[variant].at}".strip()
        cells = [f"{variants[variant].series}, {place}" if several else place]
        cells += [_spread([row["knn_top1"] for row in found])]
        cells += [", ".join(f"{row['knn_top1']:.1f}" for row in found)]
        # for each variant, because an untrained encoder's accuracy depends on its architecture
        cells += [_mean(before_training([row for row in rows if row["variant"] == variant]))]
        cells += [_spread([row[f"{p}_top1"] for row in found if row[f"{p}_top1"] != ""]) for p in probes]
        cells += [_mean([row["loss"] for row in found if row["loss"] != ""], 2)]
        cells += [_mean([row["seconds"] for row in found if row["seconds"] != ""], 0)]
        of_paper = reported(name, variants[variant])
        cells += ["" if of_paper is None else "fails" if of_paper.top1 is None else f"{of_paper.top1:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_notes(name, rows, probes, _SECONDS)]) + "\n"


def _with_untrained(name: str, rows: Rows) -> str:
    """Each run's encoder before and after training, by both probes, and as timm loads its export."""
    probes = ("kNN", "linear --fast")
    head = ["encoder", "parameters", "image side", "optimiser", "seed"]
    head += [f"{probe}, {what}" for probe in probes for what in ("untrained", "trained", "gain in standard errors")]
    head += ["largest difference in timm", "contiguous", "largest feature", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for row in (row for found in last_rows(rows).values() for row in found):
        (before,) = before_training([one for one in rows if (one["arch"], one["seed"]) == (row["arch"], row["seed"])])
        cells = [row["arch"].removeprefix("timm:"), f"{row['parameters'] / 1e6:.1f} M", str(row["image_size"])]
        cells += [row["optimiser"], str(row["seed"])]
        for untrained, trained in ((before, row["knn_top1"]), (row["untrained_fast_top1"], row["fast_top1"])):
            gain = in_standard_errors(untrained, trained, row["val_images"])
            cells += [f"{untrained:.1f}", f"{trained:.1f}", f"{gain:.1f}"]
        cells += [f"{row[f'timm_difference{layout}']:.1e}" for layout in ("", "_contiguous")]
        cells += [f"{row['timm_largest']:.1f}", f"{row['seconds']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    meaning = (
        "Top-1 in percent. A gain's standard error is that of the difference of two shares of the validation images. "
        "Differences in timm: absolute, of the pooled features of photographs, between the encoder of the checkpoint "
        "and what timm.create_model makes, with the export loaded strictly: channels-last as the checkpoint's encoder, "
        "and contiguous as timm makes it, where other kernels round in another way."
    )
    return "\n".join([*lines, "", meaning, "", *_notes(name, rows, ["fast"], _SECONDS)]) + "\n"


def in_standard_errors(before: float, after: float, images: int) -> float:
    """The gain of a top-1, both in percent of so many images, in standard errors of their difference."""
    variance = sum(share * (100 - share) / images for share in (before, after))
    return (after - before) / math.sqrt(variance) if variance else 0.0


def _spread(values: Sequence[float]) -> str:
    """Mean, lowest and highest."""
    return f"{_mean(values)} ({min(values):.1f} to {max(values):.1f})" if values else ""


def _mean(values: Sequence[float], digits: int = 1) -> str:
    return f"{statistics.mean(values):.{digits}f}" if values else ""


def _notes(name: str, rows: Rows, probes: Sequence[str], more: str) -> list[str]:
    """Sizes, probes, settings, machine and sources, each a paragraph; `more` ends the first."""
    ends = [row for found in last_rows(rows).values() for row in found]
    sizes = [f"{ends[0][key]:,} {of}" for key, of in SIZES.items()]
    epochs = _all(row["epoch"] for row in ends if row["epoch"])
    parts = [
        f"{', '.join(sizes)}. Seeds {_all(row['seed'] for row in ends)}; {epochs} epochs. kNN: the frozen encoder's "
        f"features, k {_all(row['knn_k'] for row in ends)}, temperature "
        f"{_all(row['knn_temperature'] for row in ends)}. {more}"
    ]
    for probe in probes:
        rates = _all(row[f"{probe}_lr"] for row in ends)
        parts.append(
            f"{HEADS[probe].capitalize()}: {_all(row[f'{probe}_epochs'] for row in ends)} epochs, at the learning rate "
            f"that is best on the validation set ({rates}), chosen alike for every encoder; so each figure is slightly "
            "too high."
        )
    same = {key: {str(row[key]) for row in ends} for key in SETTINGS}
    settings = ", ".join(
        f"{key} {values.pop()}" for key, values in same.items() if len(values) == 1 and values not in ({"None"}, {""})
    )
    machine = f"{_all(row['cpu'] for row in ends)}, {_all(row['threads'] for row in ends)} thread(s) per run"
    parts.append(f"Same in all rows: {settings}.")
    dates = sorted(row["date"] for row in ends)
    parts.append(
        f"{machine}; torch {_all(row['torch'] for row in ends)}; "
        f"started at commit {_all(row['commit'] for row in ends)}; "
        f"{dates[0]} to {dates[-1]}."
    )
    sources = dict.fromkeys(r.source for r in REPORTED.get(name, ()))
    if sources:
        parts.append(f"The paper's figures: {'; '.join(sources)}. They are for ImageNet-1M and a ResNet-50 or larger.")
    return [text for part in parts for text in (part, "")][:-1]


def _all(values: Iterable[Any]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in sorted({*values} - {""}))


def _by_epoch(name: str, experiment: Experiment, rows: Rows) -> str:
    """The kNN accuracy by variant and epoch, mean over the seeds, and the last epoch's seeds."""
    cells: dict[tuple[str, float], list[float]] = defaultdict(list)
    for row in rows:
        cells[row["variant"], row["epoch"]].append(row["knn_top1"])
    epochs = sorted({row["epoch"] for row in rows})
    # rows of earlier versions have neither spread nor the sets' sizes
    whole = all("spread" in row for row in rows)
    head = [*(f"epoch {epoch:g}" for epoch in epochs), "each seed at the end", *["lowest spread, each seed"] * whole]
    lines = [f"| variant | {' | '.join(head)} |", "| --- |" + " ---: |" * len(epochs) + " --- |" * (1 + whole)]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        means = [_mean(cells[variant, epoch]) for epoch in epochs]
        ends = [", ".join(f"{value:.1f}" for value in cells[variant, epochs[-1]])]
        if whole:
            ends.append(", ".join(f"{value:.2f}" for value in _lowest_spreads(variant, rows).values()))
        lines.append(f"| {variant} | {' | '.join([*means, *ends])} |")
    if not whole:
        return "\n".join(lines) + "\n"
    spread = (
        "Spread: the lowest of the keys in a log line; a collapse of the first epochs shows there, and features that "
        "fill the sphere have a spread near 1."
    )
    stated = _difference(experiment.difference, rows) if experiment.difference else []
    return "\n".join([*lines, "", *stated, *_notes(name, rows, (), spread)]) + "\n"


def _lowest_spreads(variant: str, rows: Rows) -> dict[int, float]:
    """The lowest spread of a variant's run, by seed."""
    found: dict[int, float] = {}
    for row in rows:
        if row["variant"] == variant and row["spread"] != "":
            found[row["seed"]] = min(row["spread"], found.get(row["seed"], row["spread"]))
    return found


def _difference(variants: tuple[str, str], rows: Rows) -> list[str]:
    """The difference of two variants' last accuracies over the seeds that both have, as a paragraph; [] if none."""
    ends = last_rows(rows)
    first, second = ({row["seed"]: row["knn_top1"] for row in ends.get(variant, ())} for variant in variants)
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return []
    apart = [first[seed] - second[seed] for seed in seeds]
    each = ", ".join(f"{value:+.1f}" for value in apart)
    text = f"{' minus '.join(variants)} at the end, seed by seed: {each}"
    if len(apart) > 1:
        error = statistics.stdev(apart) / len(apart) ** 0.5
        text += f"; mean {statistics.mean(apart):+.1f} points, standard error {error:.1f} over {len(apart)} seeds"
    share = statistics.mean([*first.values(), *second.values()]) / 100
    noise = 100 * (share * (1 - share) / rows[0]["val_images"]) ** 0.5
    return [f"{text}. One accuracy has a standard error of {noise:.1f} points by the number of images alone.", ""]
