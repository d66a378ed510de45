"""The training of a detector, stopped and continued bit for bit."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fastmoco.detection.batches import TrainingBatches
from fastmoco.detection.coco_metric import as_results
from fastmoco.detection.images import Reader
from fastmoco.detection.measuring import detect, measure
from fastmoco.detection.sets import open_sets
from fastmoco.detection.settings import RANDOM, DetectSettings
from fastmoco.detection.step import DetectStep
from fastmoco.detection.voc_metric import Found
from fastmoco.detection.weights import Entered, enter, read_weights
from fastmoco.distributed import World
from fastmoco.runs import checkpoint
from fastmoco.runs.errors import Stopped, TrainingError
from fastmoco.runs.log import RunLog, write_atomically
from fastmoco.runs.signals import on_stop_signal

log = logging.getLogger(__name__)

FORMAT = "fastmoco-detect/1"
"""Of a transfer's checkpoints: `detect` (what decides the weights), `progress` {step}, `model`, `optimiser`."""
OnStep = Callable[["Transfer", dict[str, float]], None]


class Transfer:
    """One transfer on one rank.

    Args:
        settings: the user's.
        here: this rank.
        on_step: called after each log line with this object and the losses.

    Attributes:
        train: the training set.
        val: the set that is measured on.
        train_step: the network and its optimiser.
        entered: what became of the initial weights' names; None for random weights and for a run that goes on.
        step: steps done.

    Raises:
        DetectionError: sets, settings or initial weights do not fit.
    """

    def __init__(self, settings: DetectSettings, here: World, on_step: OnStep | None = None) -> None:
        self.settings, self.here, self.on_step = settings, here, on_step
        self.train, self.val = open_sets(settings)
        self.reader = Reader(
            settings.min_sizes, settings.test_size, settings.max_size, settings.mask, settings.seed
        )  # fmt: skip
        self.batches = TrainingBatches(
            self.train, self.reader, settings.batch_size, settings.seed, here, settings.threads
        )
        self.total_steps = settings.iterations
        if settings.epochs is not None:
            self.total_steps = settings.epochs * self.batches.steps_per_epoch
        self.train_step = DetectStep(settings, len(self.train.classes), here)
        self.entered: Entered | None = None
        self.step = 0
        self._figures: tuple[int, dict[str, Any]] | None = None  # and the step that they are of
        self._stop_asked = self._stop = False

    def run(self) -> dict[str, Any]:
        """Train to the end, and measure.

        Returns:
            The figures of `measure`, the settings, and what decided them.

        Raises:
            CheckpointError: the run folder holds another transfer's checkpoints.
            BrokenImage: a photograph cannot be read.
            TrainingError: the loss is not finite.
            Stopped: after SIGTERM or SIGINT, once the state is safe.
        """
        if not self._resume():
            self._enter()
        if self.step < self.total_steps:
            self._train()
        elif self.here.is_main:
            log.info("%s holds %d of %d steps; nothing to train", self.settings.out, self.step, self.total_steps)
        figures = self._measured()
        sizes = {"train": len(self.train.photos), "val": len(self.val.photos), "classes": len(self.val.classes)}
        return figures | {"steps": self.step, "init": self.settings.init, **sizes, "detect": self._identity()}

    def _enter(self) -> None:
        if self.settings.init == RANDOM:
            return
        source, tensors = read_weights(Path(self.settings.init), self.settings.arch)
        self.entered = enter(self.train_step.detector, self.settings.detector, source, tensors)
        if self.here.is_main:
            log.info("%s", self.entered)

    def _train(self) -> None:
        self.train_step.begin()
        if self.here.is_main:
            self._say_what_runs()
        records = None
        if self.here.is_main:
            records = RunLog(
                self.settings.out, self.settings.plain() | {"detect": self._identity()}, self.step, self.total_steps
            )
        try:
            with on_stop_signal(self._ask_to_stop):
                self._steps(records)
        finally:
            if records:
                records.close()

    def _say_what_runs(self) -> None:
        settings, here = self.settings, self.here
        log.info(
            "%s: %s R-CNN, %s-%s, %s on %d × %s; %d photographs to train on, %d to be measured on, %d classes; "
            "%d of %d steps of %d done",
            settings.recipe, "Mask" if settings.mask else "Faster", settings.arch, settings.detector.upper(),
            settings.precision, here.size, here.device.type, len(self.train.photos), len(self.val.photos),
            len(self.train.classes), self.step, self.total_steps, settings.batch_size,
        )  # fmt: skip

    def _steps(self, records: RunLog | None) -> None:
        settings = self.settings
        every = settings.eval_every
        if every and self.step == 0:
            self._evaluate(records)
        since = time.perf_counter(), self.step
        for batch in self.batches.steps(self.step, self.total_steps):
            losses = self.train_step(batch, self.step)
            self.step += 1
            at_end = self.step == self.total_steps
            if self.step % settings.log_every == 0 or self.step == 1 or at_end:
                now = time.perf_counter()
                rate = (self.step - since[1]) * settings.batch_size / (now - since[0])
                since = now, self.step
                self._log(losses, rate, records)
            if every and (self.step % every == 0 or at_end):
                self._evaluate(records)
                since = time.perf_counter(), self.step
            if self.step % settings.checkpoint_every == 0 or self._stop or at_end:
                self._save()
            if self._stop and not at_end:
                raise Stopped(f"stopped after step {self.step}; the same command continues from there")

    def _ask_to_stop(self) -> None:
        self._stop_asked = True
        self._stop = self.here.size == 1  # several ranks agree on it at the next log line

    def _log(self, losses: dict[str, torch.Tensor], rate: float, records: RunLog | None) -> None:
        """Record the last batch's losses, as means of the ranks, which tell each other whether to stop."""
        told = torch.stack([*(value.float() for value in losses.values()), torch.zeros_like(losses["loss"])])
        told[-1] = float(self._stop_asked)
        if self.here.size > 1:
            dist.all_reduce(told)
        *values, stop = told.tolist()
        self._stop = stop > 0
        named = {name: value / self.here.size for name, value in zip(losses, values, strict=True)}
        if not math.isfinite(named["loss"]):
            raise TrainingError(
                f"the loss is {named['loss']} at step {self.step}; start another run with a lower --lr or a longer "
                "--warmup"
            )
        if self.on_step:
            self.on_step(self, named)
        if records is None:
            return
        epoch = round(self.step / self.batches.steps_per_epoch, 4)
        figures = {"lr": self.settings.lr_at(self.step - 1), **named, "imgs_per_sec": rate}
        line = "  ".join(f"{name.removeprefix('loss_')} {value:.4g}" for name, value in figures.items())
        records.write({"step": self.step, "epoch": epoch, **figures}, line)
        records.advance(self.step)

    def _evaluate(self, records: RunLog | None) -> None:
        figures = self._measured()
        if records is None:
            return
        named = {name: figures[name] for name in ("AP", "AP50", "AP75")}
        if self.settings.mask:
            named |= {f"segm_{name}": figures["coco"]["segm"][name] for name in ("AP", "AP50", "AP75")}
        epoch = round(self.step / self.batches.steps_per_epoch, 4)
        line = "  ".join(f"{name} {told(figure)}" for name, figure in named.items())
        records.write({"step": self.step, "epoch": epoch, **named}, line)

    def _measured(self) -> dict[str, Any]:
        """The figures after the steps so far, on rank 0, which keeps the detections as well."""
        if self._figures is None or self._figures[0] != self.step:
            step, figures = self.train_step, {}
            found = detect(step.detector, self.val, self.reader, self.here, self.settings.threads, step.dtype)
            if self.here.is_main:
                figures = measure(self.val, found, self.settings.mask)
                self._write(found)
            self._figures = self.step, figures
        return self._figures[1]

    def _write(self, found: list[Found]) -> None:
        """Keep detections, and of a VOC-format set the truth, in COCO's formats."""
        out = self.settings.out
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "detections.json", json.dumps(as_results(self.val, found)) + "\n")
        if self.val.truth is None:
            write_atomically(out / "truth.json", json.dumps(self.val.as_coco()) + "\n")

    def _identity(self) -> dict[str, Any]:
        """All that decides the weights."""
        return {"train": self.train.digest, "classes": list(self.train.classes), **self.settings.deciding()}

    def _resume(self) -> bool:
        newest = checkpoint.newest_of_same(
            self.settings.out / "checkpoints", FORMAT, "detect", self._identity(), "transfer"
        )
        if newest is None:
            return False
        path, state = newest
        self.train_step.load_state(state)
        self.step = state["progress"]["step"]
        if self.here.is_main:
            log.info("continuing from %s: %d of %d steps are done", path, self.step, self.total_steps)
        return True

    def _save(self) -> None:
        if not self.here.is_main:
            return
        state = {"format": FORMAT, "detect": self._identity(), "progress": {"step": self.step}}
        checkpoint.save(
            self.settings.out / "checkpoints", state | self.train_step.state(), self.settings.keep_checkpoints
        )


def told(figure: float | None) -> str:
    """A figure for a person."""
    return "none" if figure is None else f"{figure:.2f}"
