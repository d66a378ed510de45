"""Detector training; on CPUs a resumed run equals a whole one bit for bit."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastmoco.checkpoints import checkpoint
from fastmoco.checkpoints.checkpoint import Changed
from fastmoco.detection.batches import TrainingBatches, read_ahead
from fastmoco.detection.coco_metric import as_results
from fastmoco.detection.errors import NoEvaluation
from fastmoco.detection.evaluation import Broken, detect, evaluate, figures_of, without
from fastmoco.detection.images import Reader, check
from fastmoco.detection.sets import open_sets
from fastmoco.detection.settings import RANDOM, DetectSettings
from fastmoco.detection.step import DetectStep
from fastmoco.detection.weights import LoadReport, load_encoder
from fastmoco.flags import named
from fastmoco.layouts.encoders import EncoderWeights, read_encoder
from fastmoco.precision import warn_if_slower
from fastmoco.probes.encoders import digest_of
from fastmoco.ranks.world import World
from fastmoco.runs.errors import TrainingError
from fastmoco.runs.folder import Wanted, run_folder, same_identity
from fastmoco.runs.progress import tracked, waiting
from fastmoco.runs.run import Run
from fastmoco.runs.signals import agree_on_stop, stop_is_asked
from fastmoco.runs.warnings import passed, warn
from fastmoco.settings import plain
from shards.storage.files import write_whole

log = logging.getLogger(__name__)

FORMAT = "fastmoco-detect/1"
"""Format of the checkpoints: `detect` (what determines the weights), `length` {iterations, epochs}, `progress` {step},
`model`, `optimiser`."""
OnStep = Callable[["Transfer", dict[str, float]], None]
_AHEAD = 64  # photographs checked ahead by the threads


class Transfer(Run):
    """One transfer on one rank.

    Args:
        settings: settings of the transfer.
        here: this rank.
        on_step: called after each log line with this object and the losses.

    Attributes:
        train: the training set.
        val: the test set.
        train_step: the network and its optimiser.
        load_report: how the names of the initial weights matched; None for random weights and for a resumed run.

    Raises:
        DetectionError: sets or settings do not fit.
        LayoutError: the initial weights do not.
    """

    layout = FORMAT

    def __init__(self, settings: DetectSettings, here: World, on_step: OnStep | None = None) -> None:
        self.settings, self.on_step = settings, on_step
        self._weights: EncoderWeights | None = None  # until they are in the detector
        self._encoder: dict[str, Any] = {}
        if settings.init != RANDOM:
            with named("--init"):
                self._weights = read_encoder(Path(settings.init), settings.arch)
            # the file may have another encoder by now
            self._encoder = {"encoder": digest_of(self._weights.encoder()), "images": self._weights.of_images()}
        with waiting("reading the annotations of both sets"):
            self.train, self.val = open_sets(settings)
        self.reader = Reader(
            settings.min_sizes, settings.test_size, settings.max_size, settings.mask, settings.seed
        )  # fmt: skip
        self.training = TrainingBatches(
            self.train, self.reader, settings.batch_size, settings.seed, here, settings.threads
        )
        steps_per_epoch = self.training.steps_per_epoch
        total_steps = settings.iterations if settings.epochs is None else settings.epochs * steps_per_epoch
        super().__init__(
            here, settings.out, steps_per_epoch, total_steps, settings,
            batch_size=settings.batch_size, evaluate_every=settings.eval_every,
        )  # fmt: skip
        self.train_step = DetectStep(settings, len(self.train.classes), here)
        self.load_report: LoadReport | None = None
        self._metrics: tuple[int, dict[str, Any]] | None = None  # and the step that they are of
        self._broken: Broken = {}  # test photographs that the last evaluation could not read
        self._unwritten: dict[str, Any] = {}  # by name: what the last evaluation leaves in the run folder
        self._start_clock()

    def run(self) -> dict[str, Any]:
        """Train to the end, and evaluate.

        Returns:
            The metrics of `evaluate`, the numbers of steps and photographs, and what determined the weights.

        Raises:
            CheckpointError: the run folder holds another transfer's checkpoints.
            FolderInUse: another process writes to it.
            BrokenImage: a training photograph cannot be read, or before the first step any photograph.
            NoEvaluation: at the end too many test photographs cannot be read.
            TrainingError: the loss is not finite.
            Stopped: after a signal (`shards.interrupts.SIGNALS`), once the state is saved.
        """
        settings, same = self.settings, partial(same_identity, "detect", self._identity(), self._length())
        wanted = Wanted(f"detect-{settings.recipe}", self.total_steps, same)
        with run_folder(settings.out, self.here, wanted, settings.notify) as self.folder:
            return self._run()

    def _run(self) -> dict[str, Any]:
        settings = self.settings
        if not self.resume() and self._weights is not None:
            detector = self.train_step.detector
            self.load_report = load_encoder(detector, settings.detector, settings.init, self._weights)
            if self.here.is_main:
                log.info("%s", self.load_report)
        self._weights = None
        if self.owed or not self.at_end:
            self._train()
        metrics = self._metrics_now()
        for name, values in self._unwritten.items():
            self._write_result(name, values)
        sizes = {"train": len(self.train.photos), "val": len(self.val.photos), "classes": len(self.val.classes)}
        return metrics | {"steps": self.step, "init": settings.init, **sizes, "detect": self._identity()}

    def _train(self) -> None:
        settings = self.settings
        self.train_step.begin()
        if self.here.is_main:
            self._log_setup()
        with self.opened(plain(settings) | {"detect": self._identity()}):
            if self.step == 0:
                # all of them, now: a damaged photograph would otherwise end the training days later
                own = (*self.train.photos, *self.val.photos)[self.here.rank :: self.here.size]
                checks = read_ahead(partial(check, masks=settings.mask), own, settings.threads, _AHEAD)
                for _ in tracked(checks, "check of the photographs", len(own), "{:,} of {:,} photographs"):
                    if stop_is_asked():
                        break
                agree_on_stop()
                # the curve's first point: what the initial weights detect. A resumed run has it already
                if settings.eval_every:
                    self._evaluate()
            if self.owed:
                self._evaluate()
                self.save_once_more()
            self._start_clock()
            for batch in self.agreed(self.training.steps(self.step, self.total_steps)):
                losses = self.train_step(batch, self.step)
                self.advance()
                if self.step == 1 or self.due(settings.log_every):
                    self._log(losses)
                if self.due(settings.eval_every):
                    self._evaluate()
                self.save_if_due(settings.checkpoint_every)

    def _log_setup(self) -> None:
        settings, here = self.settings, self.here
        warn_if_slower(settings.precision, here.device)
        log.info(
            "%s: %s R-CNN, %s-%s, %s on %d × %s; %d training photographs, %d test photographs, %d classes; "
            "%d of %d steps of %d done",
            settings.recipe, "Mask" if settings.mask else "Faster", settings.arch, settings.detector.upper(),
            settings.precision, here.size, here.device.type, len(self.train.photos), len(self.val.photos),
            len(self.train.classes), self.step, self.total_steps, settings.batch_size,
        )  # fmt: skip
        late = [str(milestone) for milestone in settings.milestones if milestone >= self.total_steps]
        if late:
            log.warning(
                "--milestones %s are not within the %d steps, so the rate does not fall there",
                *(" ".join(late), self.total_steps),
            )

    def _start_clock(self) -> None:
        """Restart the clock of the logged rate."""
        self._since = time.perf_counter(), self.step

    def _log(self, losses: dict[str, torch.Tensor]) -> None:
        """Record the last batch's losses, as means over the ranks."""
        values = self.mean_over_ranks(torch.stack([value.float() for value in losses.values()]))
        named = dict(zip(losses, values, strict=True))
        # after the exchange, so that all ranks see it and end alike
        if not math.isfinite(named["loss"]):
            raise TrainingError(
                f"the loss is {named['loss']} at step {self.step}; start another run with a lower --lr or a longer "
                "--warmup"
            )
        if self.on_step:
            with self.holding_errors():
                self.on_step(self, named)
        started, first = self._since
        rate = (self.step - first) * self.settings.batch_size / (time.perf_counter() - started)
        self._start_clock()
        metrics = {"lr": self.settings.lr_at(self.step - 1), **named, "imgs_per_sec": rate}
        self.record(metrics, "  ".join(f"{name.removeprefix('loss_')} {value:.4g}" for name, value in metrics.items()))

    def _evaluate(self) -> None:
        try:
            with self.evaluating():
                metrics = self._metrics_now()
        except NoEvaluation as error:
            metrics, self.owed = None, False
            if self.here.is_main:
                warn(
                    "evaluation",
                    f"no evaluation at step {self.step}: {error}. Training goes on, and the next evaluation is tried",
                )
        else:
            passed("evaluation")
        self._start_clock()
        if not self.here.is_main:
            return
        self.record(*figures_of(metrics, self.settings.mask))
        for name in list(self._unwritten):
            if self.disk.write(name, partial(self._write_result, name, self._unwritten[name])):
                del self._unwritten[name]

    def _metrics_now(self) -> dict[str, Any]:
        """The metrics of the current weights, on rank 0, and the number of photographs left out of them.

        `_unwritten` has the detections then, and for a VOC-format set the ground truth, in COCO's formats.

        Raises:
            NoEvaluation: on all ranks: too many photographs cannot be read.
        """
        # an evaluation at the last step serves as the run's result as well
        if self._metrics is None or self._metrics[0] != self.step:
            step, metrics = self.train_step, {}
            detections, broken = detect(
                step.detector, self.val, self.reader, self.here, self.settings.threads, step.dtype
            )
            if self.here.is_main:
                self._warn_of_broken(broken)
                val = without(self.val, broken)
                with waiting("computing the metrics of the detections"):
                    metrics = evaluate(val, detections, self.settings.mask) | {"left_out": len(broken)}
                self._unwritten = {"detections.json": as_results(val, detections)}
                # a VOC-format set has no file that pycocotools reads; others can repeat the evaluation with this one
                if val.layout == "voc":
                    self._unwritten["truth.json"] = val.as_coco()
            self._metrics = self.step, metrics
        return self._metrics[1]

    def _warn_of_broken(self, broken: Broken) -> None:
        """Name the photographs that are left out of the evaluation, each once until it can be read again."""
        for number in self._broken.keys() - broken.keys():
            passed(f"photograph_{number}")
        for number, why in broken.items():
            warn(f"photograph_{number}", f"left out of the evaluation at step {self.step}: {why}")
        self._broken = broken

    def _write_result(self, name: str, values: Any) -> None:
        write_whole(self.folder / name, (json.dumps(values) + "\n").encode())

    def _identity(self) -> dict[str, Any]:
        """All that determines the weights."""
        sets = {"train": self.train.digest, "classes": list(self.train.classes)}
        return sets | self._encoder | self.settings.deciding()

    def _length(self) -> dict[str, Any]:
        return {"iterations": self.settings.iterations, "epochs": self.settings.epochs}

    def check_resumable(self, path: Path, state: dict[str, Any]) -> Changed:
        """See `Run.check_resumable`."""
        checkpoint.check_identity(path, state["detect"], self._identity(), "transfer")
        now = self._length()
        before = state.get("length", now)  # checkpoints from before it was recorded
        return {name: (before[name], value) for name, value in now.items() if before[name] != value}

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Run.load_state`."""
        self.train_step.load_state(state)
        self.owed = state["progress"].get("owed", False) and self.settings.eval_every > 0

    def state(self) -> dict[str, Any]:
        """See `Run.state`."""
        progress = {"step": self.step, "owed": self.owed}
        return {
            "detect": self._identity(), "length": self._length(), "progress": progress, **self.train_step.state(),
        }  # fmt: skip
