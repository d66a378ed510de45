"""The rows of `hour.py` as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from _learning.budget import CHANGES, described
from _learning.table import SIZES, Rows, before_training, last_rows

BASE = "moco-v2"
MEASURES = {"knn_top1": "kNN top-1", "fast_top1": "linear top-1 (`--fast`)"}


def table(rows: Rows) -> str:
    """Top-1 in percent by variant, with what a step takes and how many of them there were."""
    ends = last_rows(rows)
    head = ["variant", "settings", "ms a step", "steps", "epochs", "images/s", "kNN, untrained", *MEASURES.values()]
    lines = [f"| {' | '.join(head)} |", "| --- | --- |" + " ---: |" * (len(head) - 2)]
    for name, found in ends.items():
        one = found[0]
        cells = [
            name, described(CHANGES.get(name, ())), f"{1000 * one['step_seconds']:.0f}", f"{one['step']:,}",
            f"{one['epoch']:.1f}", f"{one['batch_size'] / one['step_seconds']:.0f}",
        ]  # fmt: skip
        untrained = before_training([row for row in rows if row["variant"] == name])
        cells.append(f"{statistics.mean(untrained):.1f}" if untrained else "")
        cells += [_accuracy(_values(found, measure), _values(ends.get(BASE, []), measure)) for measure in MEASURES]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_notes(rows)]) + "\n"


def _values(found: Rows, measure: str) -> list[float]:
    return [row[measure] for row in found if row[measure] != ""]


def _accuracy(values: Sequence[float], base: Sequence[float]) -> str:
    """Mean and each seed; bold where every seed is above every seed of the base, of which there are several."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):.1f}"
    wins = min(len(values), len(base)) > 1 and min(values) > max(base)
    return f"{f'**{mean}**' if wins else mean} ({', '.join(f'{value:.1f}' for value in values)})"


def _notes(rows: Rows) -> list[str]:
    ends = [row for found in last_rows(rows).values() for row in found]

    def all_of(name: str) -> str:
        return ", ".join(dict.fromkeys(f"{row[name]:g}" if isinstance(row[name], float) else str(row[name])
                                       for row in sorted(ends, key=lambda row: str(row[name]))))  # fmt: skip

    sizes = ", ".join(f"{ends[0][key]:,} {of}" for key, of in SIZES.items())
    dates = sorted(row["date"] for row in ends)
    parts = [
        f"{sizes}. Each run has {all_of('minutes')} minutes of training steps at the measured pace. In brackets each "
        f"seed ({all_of('seed')}). Bold: every seed is above every seed of {BASE}. kNN, untrained: of the encoder "
        "before its first step, on average.",
        f"kNN: pooled features, k {all_of('knn_k')}, temperature {all_of('knn_temperature')}. Linear: "
        f"{all_of('fast_epochs')} epochs on features of centre crops, at the learning rate that is best on the "
        "validation set, chosen alike for every encoder; so each figure is slightly too high.",
        f"Same in all rows: {all_of('arch')}, views of {all_of('augmentation')}, K {all_of('negatives')}. "
        f"{all_of('cpu')}, {all_of('threads')} thread(s) per run; torch {all_of('torch')}; started at commit "
        f"{all_of('commit')}; {dates[0]} to {dates[-1]}.",
    ]  # fmt: skip
    return [text for part in parts for text in (part, "")][:-1]
