"""The training of a detector, stopped and continued bit for bit."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastmoco.detection.batches import TrainingBatches
from fastmoco.detection.coco_metric import as_results
from fastmoco.detection.images import Reader, Sample
from fastmoco.detection.measuring import as_input, detect, measure
from fastmoco.detection.models import build_detector
from fastmoco.detection.sets import open_sets
from fastmoco.detection.settings import RANDOM, DetectSettings
from fastmoco.detection.voc_metric import Found
from fastmoco.detection.weights import Entered, enter, read_weights
from fastmoco.distributed import World, to_device
from fastmoco.trainer import checkpoint
from fastmoco.trainer.checkpoint import CheckpointError
from fastmoco.trainer.errors import Stopped, TrainingError
from fastmoco.trainer.metrics import RunLog, write_atomically
from fastmoco.trainer.signals import on_stop_signal

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
        detector: the network.
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
        self.dtype = torch.bfloat16 if settings.precision == "bf16" else None
        self.detector = build_detector(settings, len(self.train.classes)).to(here.device)
        self.optimiser = _optimiser(self.detector, settings)
        self.entered: Entered | None = None
        self.step = 0
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
        found = self._detect()
        figures = measure(self.val, found, self.settings.mask) if self.here.is_main else {}
        if self.here.is_main:
            self._write(found)
        sizes = {"train": len(self.train.photos), "val": len(self.val.photos), "classes": len(self.val.classes)}
        return figures | {"steps": self.step, "init": self.settings.init, **sizes, "detect": self._identity()}

    def _enter(self) -> None:
        if self.settings.init == RANDOM:
            return
        source, tensors = read_weights(Path(self.settings.init), self.settings.arch)
        self.entered = enter(self.detector, self.settings.detector, source, tensors)
        if self.here.is_main:
            log.info("%s", self.entered)

    def _train(self) -> None:
        network: nn.Module = self.detector
        if self.here.size > 1:
            devices = [self.here.device] if self.here.device.type == "cuda" else None
            network = DistributedDataParallel(self.detector, device_ids=devices, broadcast_buffers=False)
        self.detector.train()
        records = None
        if self.here.is_main:
            records = RunLog(
                self.settings.out, self.settings.plain() | {"detect": self._identity()}, self.step, self.total_steps
            )
        try:
            with on_stop_signal(self._ask_to_stop):
                self._steps(network, records)
        finally:
            if records:
                records.close()

    def _steps(self, network: nn.Module, records: RunLog | None) -> None:
        settings = self.settings
        every = settings.eval_every
        if every and self.step == 0:
            self._evaluate(records)
        since = time.perf_counter(), self.step
        for batch in self.batches.steps(self.step, self.total_steps):
            losses = self._advance(network, batch)
            self.step += 1
            at_end = self.step == self.total_steps
            if self.step % settings.log_every == 0 or self.step == 1 or at_end:
                now = time.perf_counter()
                rate = (self.step - since[1]) * settings.batch_size / (now - since[0])
                since = now, self.step
                self._log(losses, rate, records)
            if every and self.step % every == 0 and not at_end:
                self._evaluate(records)
                since = time.perf_counter(), self.step
            if self.step % settings.checkpoint_every == 0 or self._stop or at_end:
                self._save()
            if self._stop and not at_end:
                raise Stopped(f"stopped after step {self.step}; the same command continues from there")
        if every:
            self._evaluate(records)

    def _advance(self, network: nn.Module, batch: list[Sample]) -> dict[str, torch.Tensor]:
        """One step; the losses stay on the device."""
        here, settings = self.here, self.settings
        for group in self.optimiser.param_groups:
            group["lr"] = settings.lr_at(self.step)
        torch.manual_seed(_seed_of(settings.seed, self.step, here.rank))  # the regions that are sampled
        images = [as_input(sample, here.device) for sample in batch]
        targets = [{name: to_device(value, here.device) for name, value in sample.target.items()} for sample in batch]
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(here.device.type, self.dtype, enabled=self.dtype is not None):
            losses = network(images, targets)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        self.optimiser.step()
        return {"loss": total.detach(), **{name: value.detach() for name, value in losses.items()}}

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
        found = self._detect()
        if records is None:
            return
        figures = measure(self.val, found, self.settings.mask)
        named = {name: figures[name] for name in ("AP", "AP50", "AP75")}
        if self.settings.mask:
            named |= {f"segm_{name}": figures["coco"]["segm"][name] for name in ("AP", "AP50", "AP75")}
        epoch = round(self.step / self.batches.steps_per_epoch, 4)
        records.write(
            {"step": self.step, "epoch": epoch, **named}, "  ".join(f"{k} {told(v)}" for k, v in named.items())
        )

    def _detect(self) -> list[Found]:
        return detect(self.detector, self.val, self.reader, self.here, self.settings.threads, self.dtype)

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
        newest = checkpoint.newest(self.settings.out / "checkpoints", FORMAT)
        if newest is None:
            return False
        path, state = newest
        now, was = self._identity(), state["detect"]
        differing = [f"{k} was {was.get(k)!r}, now {now[k]!r}" for k in now if was.get(k) != now[k]]
        if differing:
            raise CheckpointError(f"{path} is of another transfer: {'; '.join(differing)}. Choose another --out")
        self.detector.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["progress"]["step"]
        if self.here.is_main:
            log.info("continuing from %s: %d of %d steps are done", path, self.step, self.total_steps)
        return True

    def _save(self) -> None:
        if not self.here.is_main:
            return
        state = {
            "format": FORMAT, "detect": self._identity(), "progress": {"step": self.step},
            "model": self.detector.state_dict(), "optimiser": self.optimiser.state_dict(),
        }  # fmt: skip
        checkpoint.save(self.settings.out / "checkpoints", state, self.settings.keep_checkpoints)


def told(figure: float | None) -> str:
    """A figure for a person."""
    return "none" if figure is None else f"{figure:.2f}"


def _optimiser(detector: nn.Module, settings: DetectSettings) -> torch.optim.SGD:
    """SGD; BatchNorm's weights and biases do not decay, as in detectron2."""
    norms = {
        parameter
        for module in detector.modules()
        if isinstance(module, nn.BatchNorm2d)
        for parameter in module.parameters(recurse=False)
    }
    others = [parameter for parameter in detector.parameters() if parameter not in norms]
    kept = [parameter for parameter in detector.parameters() if parameter in norms]
    groups = [{"params": others, "weight_decay": settings.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)


def _seed_of(seed: int, step: int, rank: int) -> int:
    """Seed of what torchvision draws in a step on a rank."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1))
