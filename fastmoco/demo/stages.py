"""The stages of the demo: images, shards, training, probe, report."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastmoco import flags
from fastmoco.checkpoints import checkpoint
from fastmoco.config import Config
from fastmoco.demo.args import Args
from fastmoco.demo.data import CLASSES, TRAIN_PER_CLASS, DemoData, DemoError, prepare, training_part
from fastmoco.demo.report import Findings, write_report
from fastmoco.layouts.encoders import read_encoder
from fastmoco.probes.knn import knn_table
from fastmoco.ranks.joining import launched
from fastmoco.ranks.world import World, world
from fastmoco.recipes import recipe
from fastmoco.report.neighbours import Samples, features, rows_of
from fastmoco.report.record import Accuracy
from fastmoco.runs.lock import only_writer
from fastmoco.settings import plain
from fastmoco.trainer.loop import train
from fastmoco.trainer.step import TrainStep
from shards import ShardSet
from shards.storage.files import write_whole

STATE, REPORT = "demo.json", "report.html"
MADE = ("data", "checkpoints", "tensorboard", "config.json", "metrics.jsonl", "quarantine.jsonl", "undecodable.jsonl",
        "views.png", REPORT, "run.html", "neighbours.json", "neighbours.png", STATE)  # fmt: skip
PROBES = 8  # points of the kNN curve after the untrained one


class Clock:
    """Duration of each stage."""

    def __init__(self, console: Console) -> None:
        self.seconds: dict[str, float] = {}
        self._console = console

    @contextmanager
    def stage(self, name: str, text: str) -> Iterator[None]:
        """Print `text` and time the block as stage `name`."""
        self._console.print(f"[bold]{text}")
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


def run(args: Args) -> Path:
    """Generate or link the images, pack, train, evaluate, and write the report; returns the report's path."""
    _check(args)
    if args.out.exists() and not args.out.is_dir():
        raise DemoError(f"--out {args.out} is a file; give a folder")
    with only_writer(args.out, World(0, 1, torch.device("cpu"))):
        return _run(args)


def _run(args: Args) -> Path:
    console = Console(soft_wrap=True, highlight=False)
    src = training_part(args.src, args.out)
    if src != args.src:
        console.print(f"{args.src} holds splits: using {src} alone", markup=False)
    clock = Clock(console)
    if not _open(args):
        report = args.out / REPORT
        console.print(
            f"{args.out} holds this demo already, finished: [bold]{report}[/]\n"
            "To make it anew: --overwrite (make demo ARGS=--overwrite). To make another beside it: --out FOLDER"
        )
        return report
    with clock.stage("prepare images", "Generating and packing images" if args.src is None else "Packing images"):
        # at three times a view's width, the smallest crop (a fifth of the area) still has more pixels than a view
        data = prepare(
            args.out / "data", src, limit=args.limit, resize=3 * args.image_size, seed=args.seed
        )  # fmt: skip
    config = settings(args, data)
    with ShardSet(data.train) as train_set:
        steps = config.total_steps(len(train_set) // config.batch_size)
    with clock.stage("train", f"Training {config.arch} for {steps:,} steps"):
        train(config)
    with clock.stage("compare", "Comparing the untrained and the trained encoder"):
        findings = compare(config, data, clock.seconds)
    report = write_report(args.out, findings)
    _write_state(args, finished=True)
    if findings.trained_top1 is not None and findings.untrained_top1 is not None:
        console.print(
            f"kNN top-1: untrained {findings.untrained_top1}, trained [bold]{findings.trained_top1}[/] "
            f"({config.knn_k} neighbours)"
        )
    else:
        console.print("The images have no labels, so there is no kNN accuracy; the report shows nearest neighbours.")
    console.print(f"Report: [bold]{report}[/]")
    return report


def _check(args: Args) -> None:
    if launched()[1] > 1:
        raise DemoError("the demo is one process; start it by fastmoco demo, not by torchrun")
    flags.at_least(1, args, "limit", "steps", "epochs")
    flags.at_least(0, args, "seed")
    flags.check_sizes(args)
    replace(recipe("demo"), image_size=args.image_size)  # raises for a size that training refuses


def _steps(args: Args) -> int | None:
    """--steps; with neither --steps nor --epochs, the recipe's steps on the generated images.

    So the default takes about the same time for any number of images.
    """
    if args.steps is not None or args.epochs is not None:
        return args.steps
    config = recipe("demo")
    return config.total_steps(CLASSES * TRAIN_PER_CLASS // config.batch_size)


def _open(args: Args) -> bool:
    """Open --out for this demo: new, or one to resume.

    Returns:
        Whether there is anything to do: not where --out holds the same demo, finished.

    Raises:
        DemoError: --out holds another demo, or other files.
    """
    out, state = args.out, args.out / STATE
    if state.exists():
        recorded = json.loads(state.read_text(encoding="utf-8"))
        finished = bool(recorded["finished"]) and (out / REPORT).exists()
        differing = _differing(recorded["args"], _deciding(args))
        if not differing and not (finished and args.overwrite):
            return not finished
        if not args.overwrite:
            what = "a finished" if finished else "an unfinished"
            raise DemoError(
                f"--out {out} holds {what} demo with other settings ({differing}); use another --out, or replace it: "
                "--overwrite"
            )
        # only what a demo writes: the folder may hold files of the user's
        for name in MADE:
            path = out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    elif any(path.name != "lock" for path in out.iterdir()):
        raise DemoError(f"--out {out} contains files that are not the demo's; use another folder, or an empty one")
    _write_state(args, finished=False)
    return True


def _deciding(args: Args) -> dict[str, Any]:
    """The settings that decide the result. A run folder that was moved or is named by another path is the same run."""
    return plain(args) | {"out": None, "overwrite": False}


def _differing(recorded: dict[str, Any], asked: dict[str, Any]) -> str:
    """The settings that differ, as text."""
    return ", ".join(
        f"{flags.flag(name)} {recorded.get(name)} there, {value} here"
        for name, value in asked.items()
        # of an earlier version that did not have the flag
        if recorded.get(name, value) != value
    )


def _write_state(args: Args, finished: bool) -> None:
    state = {"args": _deciding(args), "finished": finished}
    write_whole(args.out / STATE, (json.dumps(state, indent=2) + "\n").encode())


def settings(args: Args, data: DemoData) -> Config:
    """The recipe `demo` for this set: batch and queue smaller than the set, kNN probes if it has labels."""
    config = recipe("demo")
    with ShardSet(data.train) as train_set:
        samples = len(train_set)
    if samples < 16:
        raise DemoError(
            f"only {samples} of the images can be used; see {data.train / 'quarantine.jsonl'} for the reasons"
        )
    batch = min(config.batch_size, samples // 2 // 8 * 8)
    config = replace(
        config,
        shards=data.train,
        out=args.out,
        image_size=args.image_size,
        batch_size=batch,
        # at most half the set: a queue as long as the set would hold a key of the query's own image among the negatives
        queue_size=max(batch, min(config.queue_size, samples // 2)),
        epochs=args.epochs if args.epochs is not None else config.epochs,
        steps=_steps(args),
        seed=args.seed,
    )
    if data.val is None:
        return config
    steps_per_epoch = samples // batch
    every = max(1, round(config.total_steps(steps_per_epoch) / steps_per_epoch / PROBES))
    k = min(config.knn_k, samples)
    return replace(config, knn_train=data.train, knn_val=data.val, knn_every=every, knn_k=k)


def compare(config: Config, data: DemoData, seconds: dict[str, float]) -> Findings:
    """Evaluate the encoder before and after training, with the same images and the same kNN."""
    assert config.out is not None  # set by `settings`
    newest = checkpoint.found(config.out / "checkpoints")[0]
    query_path = data.val or data.train
    top1: list[Accuracy | None] = []
    found = []
    with world() as here, ShardSet(data.train) as train_set, ShardSet(query_path) as query_set:
        # the same seed, so the weights that the training started from
        untrained = TrainStep(config, here.device, 1).model.encoder.backbone
        trained = read_encoder(newest).encoder().to(here.device)
        for encoder in (untrained, trained):
            train_part = features(encoder, train_set, here.device, config.image_size)
            queries = features(encoder, query_set, here.device, config.image_size) if data.val else train_part
            found.append(rows_of(queries, train_part))
            top1.append(_knn(queries, train_part, config) if data.val else None)
    return Findings(config, data.notes, data.train, query_path, found[0], found[1], top1[0], top1[1], newest, seconds)


def _knn(queries: Samples, train_part: Samples, config: Config) -> Accuracy:
    """Measured as by the monitor during training."""
    classes, here = len(train_part.shard_set.classes), World(0, 1, torch.device("cpu"))
    (percent,) = knn_table(train_part.bank, queries.bank, [(config.knn_k, config.knn_temperature)], classes, here)
    return Accuracy(percent, len(queries.ids))
