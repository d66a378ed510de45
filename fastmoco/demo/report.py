"""The demo's report: one HTML file with the training's settings, curves and results."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from fastmoco.config import Config
from fastmoco.report import rows
from fastmoco.report.charts import draw
from fastmoco.report.curves import Level, charts_of
from fastmoco.report.page import page, picture, section, table, tile
from fastmoco.report.page import text as escaped
from fastmoco.report.pages import environment_of
from fastmoco.report.reading import read_run
from fastmoco.report.record import Accuracy, RunRecord
from fastmoco.report.rows import Row
from fastmoco.report.words import about_loss, times, verdict
from pipelines.augmentation import ViewPair
from shards import ShardSet
from shards.storage.files import write_whole
from shards.words import duration


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
        untrained_top1: kNN top-1 of the untrained encoder; None without labels.
        trained_top1: kNN top-1 of the trained encoder; None without labels.
        seconds: duration of each stage of the demo.
        checkpoint: file of the trained model.
    """

    config: Config
    data: tuple[str, ...]
    train_set: Path
    query_set: Path
    untrained: list[Row]
    trained: list[Row]
    untrained_top1: Accuracy | None
    trained_top1: Accuracy | None
    checkpoint: Path
    seconds: dict[str, float] = field(default_factory=dict)


def write_report(run: Path, findings: Findings) -> Path:
    """Write RUN/report.html from the findings and the run folder; returns its path."""
    recorded = read_run(run)
    with ShardSet(findings.train_set) as train_set:
        body = [
            _head(findings, train_set, recorded),
            _views(run / "views.png", findings.config),
            _curves(findings, recorded),
            _neighbours(findings),
            _settings(findings, recorded),
            _next(findings),
        ]
    path = run / "report.html"
    write_whole(path, page("fastmoco demo", body).encode())
    return path


def _head(found: Findings, train_set: ShardSet, run: RunRecord) -> str:
    total = sum(found.seconds.values())
    tiles = []
    before, after = found.untrained_top1, found.trained_top1
    if before is not None and after is not None:
        ratio = times(before, after)
        what = "kNN top-1 ± standard error, untrained → trained" + (f", {ratio}" if ratio else "")
        tiles.append(tile(f"<i>{before} →</i> <em>{after}</em>", what, main=True))
    tiles.append(tile(f"{run.rate() or 0:,.0f}", "images/s in training, two views of each"))
    tiles.append(tile(duration(found.seconds.get("train", total)), f"training time; whole demo: {duration(total)}"))
    size = f"{len(train_set):,}"
    kinds = f"images, {len(train_set.classes)} classes" if after is not None else "images without labels"
    tiles.append(tile(size, f"training {kinds}"))
    notes = list(found.data)
    if before is None or after is None:
        notes.append(
            "There are no labels, so there is no kNN accuracy; judge the nearest neighbours below by eye. "
            "For the accuracy, use a folder with one subfolder per class."
        )
    else:
        notes += [
            "Training uses no labels. The evaluation does: each of the "
            f"{after.images:,} held-out images is classified by its {found.config.knn_k} nearest training images.",
            verdict(before, after),
        ]
    said = "".join(f"<p>{escaped(note)}</p>" for note in notes)
    return f"<h1>Momentum Contrast on {size} images</h1>\n{said}\n<div class='tiles'>{''.join(tiles)}</div>"


def _views(path: Path, config: Config) -> str:
    text = (
        f"Training pairs two random crops of the same image, {config.image_size} pixels wide, randomly "
        f"{_changes(config.view_pair)}. "
        f"The encoder learns to match the two views of an image among those of {config.negatives:,} other images."
    )
    return section("Two views of each image", text, picture(path.read_bytes(), "png", "Pairs of views", "views"))


def _changes(pair: ViewPair) -> str:
    """What happens to crops, as `flipped, recoloured and blurred`."""
    done = {
        "flipped": any(spec.flip or spec.vertical_flip for spec in pair),
        "turned": any(spec.turns for spec in pair),
        "recoloured": any(spec.colours for spec in pair),
        "blurred": any(spec.blur for spec in pair),
        "solarized": any(spec.solarize for spec in pair),
    }
    *words, last = [word for word, happens in done.items() if happens] or ["placed"]
    return f"{', '.join(words)} and {last}" if words else last


def _curves(found: Findings, run: RunRecord) -> str:
    charts = [chart for chart in charts_of([run]) if chart.title in ("Loss", "kNN top-1")]
    if found.untrained_top1 is not None:
        level = Level(found.untrained_top1.percent, f"untrained {found.untrained_top1}")
        charts = [replace(chart, levels=[level]) if chart.title == "kNN top-1" else chart for chart in charts]
    drawn = "".join(f"<div><h3>{chart.title}</h3>{draw(chart)}</div>" for chart in charts)
    losses = [value for _, value in run.values("loss")]
    text = about_loss(losses, run.chance, run.last("queue_fill"))
    return section("Training", escaped(text), f'<div class="two">{drawn}</div>')


def _neighbours(found: Findings) -> str:
    columns = (
        rows.grid_of(title, lines)
        for title, lines in (("Untrained encoder", found.untrained), ("Trained encoder", found.trained))
    )
    text = rows.explained(found.trained_top1 is not None)
    return section("Nearest neighbours", text, f'<div class="two">{"".join(columns)}</div>')


def _settings(found: Findings, run: RunRecord) -> str:
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
    tables = f'<div class="two"><div>{table(settings)}</div><div>{table([*environment_of(run), *stages])}</div></div>'
    return section("Settings and environment", "What these results were measured with.", tables)


def _next(found: Findings) -> str:
    def command(text: str, line: str) -> str:
        return f"<p>{escaped(text)}</p><pre>{escaped(line)}</pre>"

    shards, checkpoint = found.train_set, found.checkpoint
    steps = [
        command("Repeat this on your own images, with or without class folders:", "fastmoco demo --src FOLDER"),
        command(
            "Train a ResNet-50 on ImageNet with all GPUs of this machine:",
            "fastmoco pack --src imagenet/ --out shards/\n"
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
