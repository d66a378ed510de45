"""The demo's report: one HTML file with the training's settings, curves and results."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastmoco.config import Config
from fastmoco.demo.charts import Level, line_chart
from fastmoco.demo.neighbours import Row, thumbnail
from fastmoco.demo.page import page, picture, section, table, tile
from shards import ShardSet
from shards.storage.files import write_whole
from shards.words import duration

PACKAGES = ("fastmoco", "torch", "torchvision", "numpy", "Pillow")


@dataclass(frozen=True)
class Findings:
    """Results of a demo run.

    Attributes:
        config: settings of the training.
        data: notes on the images, one sentence each.
        train_set: path of the training set.
        query_set: path of the set that contains the queries.
        untrained: neighbours in the untrained encoder's features, one row per query.
        trained: neighbours of the same queries in the trained encoder's features.
        untrained_top1: kNN top-1 of the untrained encoder in percent; None without labels.
        trained_top1: kNN top-1 of the trained encoder in percent; None without labels.
        seconds: duration of each stage of the demo.
        checkpoint: file of the trained model.
        device: name of the device.
    """

    config: Config
    data: tuple[str, ...]
    train_set: Path
    query_set: Path
    untrained: list[Row]
    trained: list[Row]
    untrained_top1: float | None
    trained_top1: float | None
    checkpoint: Path
    device: str
    seconds: dict[str, float] = field(default_factory=dict)


def write_report(run: Path, findings: Findings) -> Path:
    """Write RUN/report.html from the findings, RUN/metrics.jsonl and RUN/views.png; returns its path."""
    records = read_metrics(run / "metrics.jsonl")
    with ShardSet(findings.train_set) as train_set, ShardSet(findings.query_set) as query_set:
        body = [
            _head(findings, train_set, query_set, records),
            _views(run / "views.png", findings.config),
            _curves(findings, records),
            _neighbours(findings, train_set, query_set),
            _settings(findings),
            _next(findings),
        ]
    path = run / "report.html"
    write_whole(path, page("fastmoco demo", body).encode())
    return path


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, in order."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def images_per_second(records: Sequence[dict[str, Any]]) -> float:
    """Median rate of the log lines, without the first of several: it includes the start-up."""
    rates = [r["imgs_per_sec"] for r in records if "imgs_per_sec" in r]
    return statistics.median(rates[1:] or rates)


def _head(found: Findings, train_set: ShardSet, query_set: ShardSet, records: list[dict[str, Any]]) -> str:
    total = sum(found.seconds.values())
    tiles = []
    if found.trained_top1 is not None and found.untrained_top1 is not None:
        figure = f"<i>{found.untrained_top1:.1f} % →</i> {found.trained_top1:.1f} %"
        ratio = f", {found.trained_top1 / found.untrained_top1:.1f} times" if found.untrained_top1 else ""
        tiles.append(tile(figure, f"kNN top-1, untrained → trained{ratio}", main=True))
    tiles.append(tile(f"{images_per_second(records):,.0f}", "images/s in training, two views of each"))
    tiles.append(tile(duration(found.seconds.get("train", total)), f"training time; whole demo: {duration(total)}"))
    size = f"{len(train_set):,}"
    kinds = f"images, {len(train_set.classes)} classes" if found.trained_top1 is not None else "images without labels"
    tiles.append(tile(size, f"training {kinds}"))
    notes = "".join(f"<p>{escape(note)}</p>" for note in found.data)
    if found.trained_top1 is None:
        notes += (
            "<p>There are no labels, so there is no kNN accuracy; judge the nearest neighbours below by eye. "
            "For the accuracy, use a folder with one subfolder per class.</p>"
        )
    else:
        notes += (
            "<p>Training uses no labels. The evaluation does: each of the "
            f"{len(query_set):,} held-out images is classified by its {found.config.knn_k} nearest training images.</p>"
        )
    return f"<h1>Momentum Contrast on {size} images</h1>\n{notes}\n<div class='tiles'>{''.join(tiles)}</div>"


def _views(path: Path, config: Config) -> str:
    text = (
        f"Training pairs two random crops of the same image, {config.image_size} pixels wide, randomly flipped"
        f"{' and recoloured' if config.augmentation == 'v1' else ', recoloured and blurred'}. "
        f"The encoder learns to match the two views of an image among those of {config.negatives:,} other images."
    )
    return section("Two views of each image", text, picture(path.read_bytes(), "png", "Pairs of views", "views"))


def _curves(found: Findings, records: list[dict[str, Any]]) -> str:
    loss = [(r["epoch"], r["loss"]) for r in records if "loss" in r]
    # the loss if all K + 1 logits were equal
    chance = Level(math.log(found.config.negatives + 1), "chance, ln(K + 1)")
    charts = ["<div><h3>Loss</h3>" + line_chart(loss, title="Loss by epoch", x_name="epoch", level=chance) + "</div>"]
    probes = {r["epoch"]: r["knn_top1"] for r in records if "knn_top1" in r}
    if probes and found.untrained_top1 is not None:
        level = Level(found.untrained_top1, f"untrained {found.untrained_top1:.1f} %")
        chart = line_chart(
            sorted(probes.items()), title="kNN top-1 by epoch", x_name="epoch", unit=" %", level=level,
            from_zero=True, dots=True,
        )  # fmt: skip
        charts.append(f"<div><h3>kNN top-1</h3>{chart}</div>")
    text = (
        "The loss starts low because the queue still contains random vectors. As real images fill the queue, the loss "
        "rises towards chance (dashed); learning keeps it below."
    )
    return section("Training", text, f'<div class="two">{"".join(charts)}</div>')


def _neighbours(found: Findings, train_set: ShardSet, query_set: ShardSet) -> str:
    text = "Each row shows a query image and the training images with the most similar features, nearest first."
    if found.trained_top1 is not None:
        text += (
            ' <span class="key right"></span> same label as the query, <span class="key wrong"></span> another label. '
            "The queries are held-out images from evenly spaced classes, not selected by result."
        )
    columns = []
    for title, rows in (("Untrained encoder", found.untrained), ("Trained encoder", found.trained)):
        lines = "".join(_row(row, train_set, query_set) for row in rows)
        marks = [mark for row in rows for mark in row.right or ()]
        share = f' <span class="soft">· {sum(marks)} of {len(marks)} right</span>' if marks else ""
        columns.append(f"<div><h3>{title}{share}</h3>{lines}</div>")
    return section("Nearest neighbours", text, f'<div class="two">{"".join(columns)}</div>')


def _row(row: Row, train_set: ShardSet, query_set: ShardSet) -> str:
    def name(shard_set: ShardSet, sample: int) -> str:
        label = int(shard_set.labels(np.array([sample]))[0])
        return shard_set.classes[label] if label >= 0 else f"image {sample}"

    cells = [picture(thumbnail(query_set, row.query), "jpeg", f"query: {name(query_set, row.query)}"), "<span></span>"]
    for place, sample in enumerate(row.neighbours):
        css = "" if row.right is None else "right" if row.right[place] else "wrong"
        cells.append(picture(thumbnail(train_set, sample), "jpeg", name(train_set, sample), css))
    return f'<div class="row">{"".join(cells)}</div>'


def _settings(found: Findings) -> str:
    config = found.config
    named = (
        "recipe", "arch", "head", "image_size", "batch_size", "queue_size", "momentum_key", "temperature", "schedule",
        "weight_decay", "augmentation", "bn_splits", "seed",
    )  # fmt: skip
    settings: list[tuple[str, object]] = [(name.replace("_", " "), getattr(config, name)) for name in named]
    settings.insert(
        5, ("learning rate", f"{config.lr or config.base_lr * config.batch_size / config.base_batch_size:.4g}")
    )
    settings.insert(6, ("length", f"{config.steps:,} steps" if config.steps else f"{config.epochs} epochs"))
    stages = [(f"time: {stage}", duration(seconds)) for stage, seconds in found.seconds.items()]
    where = [
        ("device", found.device),
        ("cores", os.cpu_count()),
        ("torch threads", torch.get_num_threads()),
        ("Python", platform.python_version()),
        *((name, metadata.version(name)) for name in PACKAGES),
    ]
    tables = f'<div class="two"><div>{table(settings)}</div><div>{table([*where, *stages])}</div></div>'
    return section("Settings and environment", "What these results were measured with.", tables)


def _next(found: Findings) -> str:
    def command(text: str, line: str) -> str:
        return f"<p>{escape(text)}</p><pre>{escape(line)}</pre>"

    shards, checkpoint = found.train_set, found.checkpoint
    steps = [
        command("Repeat this on your own images, with or without class folders:", "fastmoco demo --src FOLDER"),
        command(
            "Train a ResNet-50 on ImageNet with all GPUs of this machine:",
            "fastmoco-shard --src imagenet/ --out shards/\n"
            "torchrun --nproc-per-node gpu -m fastmoco train --shards shards/ --recipe moco-v2",
        ),
        command(
            "Measure whether the loader or the model limits the speed on this machine:",
            "python benchmarks/imgs_per_sec.py",
        ),
    ]
    if found.trained_top1 is not None:
        probe = f"fastmoco knn --checkpoint {checkpoint} \\\n    --train {shards} --val {found.query_set}"
        steps.insert(1, command("Evaluate this checkpoint again, or on other sets:", probe))
    code = f'from fastmoco.layouts.encoders import read_encoder\nencoder = read_encoder(Path("{checkpoint}")).encoder()'
    steps.append(command("Use the trained encoder in Python:", f"from pathlib import Path\n{code}"))
    return section("What to do next", "Commands to continue from here.", *steps)
