"""The linear probe: classifiers trained on a frozen encoder's features, stopped and continued bit for bit."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from fastmoco.distributed import World
from fastmoco.probes.classifiers import Classifiers
from fastmoco.probes.encoders import Frozen, unchanged
from fastmoco.probes.features import Bank, Extractor
from fastmoco.probes.linear_data import BankFeatures, CropFeatures, Source
from fastmoco.probes.linear_settings import LinearSettings
from fastmoco.probes.sets import LabelledSets, resize_for
from fastmoco.runs import checkpoint
from fastmoco.runs.log import RunLog
from fastmoco.runs.signals import on_stop_signal
from fastmoco.trainer.loop import Stopped
from pipelines import LabelledCrops, ViewSpec

log = logging.getLogger(__name__)

FORMAT = "fastmoco-linear/1"
"""Of the probe's checkpoints: `probe` (what decides the result), `progress` {step}, `heads`, `optimiser`."""
KEEP = 2
CHUNK = 8192
"""Features classified at a time."""


class LinearProbe:
    """One probe on one rank.

    Args:
        settings: the user's.
        frozen: the encoder; moved to the rank's device.
        here: this rank.

    Attributes:
        sets: the two sets.
        classifiers: one for each learning rate.
        step: steps done.

    Raises:
        ProbeError, PipelineError: the sets have no labels or differ in their classes, or the batch fits neither set
            nor ranks.
    """

    def __init__(self, settings: LinearSettings, frozen: Frozen, here: World) -> None:
        self.settings, self.frozen, self.here = settings, frozen, here
        self.sets = LabelledSets(settings.train, settings.val)
        size = settings.image_size or frozen.image_size
        self.extractor = Extractor(
            frozen.encoder.to(here.device), frozen.digest, settings.resize or resize_for(size), size, here,
            max(1, settings.batch_size // here.size), settings.precision, settings.threads, settings.cache,
        )  # fmt: skip
        self.classifiers = Classifiers(
            self.extractor.dim, self.sets.classes, settings.lr, momentum=settings.momentum,
            weight_decay=settings.weight_decay, seed=settings.seed, device=here.device,
        )  # fmt: skip
        self.step = 0
        self._stop_asked = self._stop = False

    def run(self) -> dict[str, Any]:
        """Train to the end, and classify.

        Returns:
            The settings and, for each learning rate, top-1 and top-5 accuracy in percent.

        Raises:
            CheckpointError: the run folder holds another probe's checkpoints.
            ProbeError: the encoder is not what it was at the start.
            Stopped: after SIGTERM or SIGINT, once the state is safe.
        """
        self._resume()
        with unchanged(self.frozen.encoder):
            source = self._source()
            val = self.extractor.bank(self.sets.val, self.sets.val_ids)
            if self.step < self.settings.epochs * source.steps_per_epoch:
                self._train(source, val)
            elif self.here.is_main:
                log.info("%s is finished: %d steps are done", self.settings.out, self.step)
            return self._result(self._accuracy(val))

    def _source(self) -> Source:
        settings, here = self.settings, self.here
        if settings.fast:
            bank = self.extractor.bank(self.sets.train, self.sets.train_ids)
            return BankFeatures(bank, settings.batch_size, settings.seed, here)
        crops = LabelledCrops(
            self.sets.train, ViewSpec.probe(self.extractor.crop), global_batch=settings.batch_size, rank=here.rank,
            world_size=here.size, seed=settings.seed, device=here.device, ids=self.sets.train_ids,
            threads=settings.threads,
        )  # fmt: skip
        return CropFeatures(self.extractor, crops)

    def _train(self, source: Source, val: Bank) -> None:
        steps = source.steps_per_epoch
        records = None
        if self.here.is_main:
            records = RunLog(self.settings.out, self._plain(), self.step, self.settings.epochs * steps)
        try:
            with on_stop_signal(self._ask_to_stop):
                for epoch in range(self.step // steps, self.settings.epochs):
                    self._epoch(epoch, source, val, records)
        finally:
            if records:
                records.close()

    def _epoch(self, epoch: int, source: Source, val: Bank, records: RunLog | None) -> None:
        steps, settings = source.steps_per_epoch, self.settings
        for features, labels in source.epoch(epoch, self.step - epoch * steps):
            losses = self.classifiers.step(features, labels, settings.factor(epoch), settings.batch_size)
            self.step += 1
            at_end = self.step == (epoch + 1) * steps
            if self.step % settings.log_every == 0 or at_end:
                self._log(losses, self.step / steps, records)
            if at_end:
                self._evaluate(val, epoch + 1, records)
            due = self.step % settings.checkpoint_every == 0 if settings.checkpoint_every else at_end
            if due or self._stop or self.step == settings.epochs * steps:
                self._save()
            if self._stop:
                raise Stopped(f"stopped after step {self.step}; the same command continues from there")

    def _ask_to_stop(self) -> None:
        self._stop_asked = True
        self._stop = self.here.size == 1  # several ranks agree on it at the next log line

    def _log(self, losses_L: torch.Tensor, epochs: float, records: RunLog | None) -> None:
        """Record the losses of the last batch; the ranks tell each other whether they were asked to stop."""
        told = torch.cat([losses_L, losses_L.new_tensor([float(self._stop_asked)])])
        if self.here.size > 1:
            dist.all_reduce(told)
        *losses, stop = told.tolist()
        self._stop = stop > 0
        if records is None:
            return
        named = {
            f"loss/lr{rate:g}": loss if math.isfinite(loss) else None
            for rate, loss in zip(self.settings.lr, losses, strict=True)
        }
        line = "  ".join(f"{name} {loss}" if loss is None else f"{name} {loss:.4f}" for name, loss in named.items())
        records.write({"step": self.step, "epoch": round(epochs, 4), **named}, line)
        records.advance(self.step)

    def _evaluate(self, val: Bank, epoch: int, records: RunLog | None) -> None:
        accuracy = self._accuracy(val)
        if records is None:
            return
        figures, lines = {}, []
        for rate, (top1, top5) in zip(self.settings.lr, accuracy, strict=True):
            figures |= {f"top1/lr{rate:g}": top1, f"top5/lr{rate:g}": top5}
            lines.append(f"lr {rate:g}: top-1 {top1:.2f} %, top-5 {top5:.2f} %")
        records.write({"step": self.step, "epoch": epoch, **figures}, "  ".join([f"epoch {epoch}", *lines]))

    def _accuracy(self, val: Bank) -> list[list[float]]:
        """Top-1 and top-5 in percent of each classifier, the same on all ranks."""
        hits = torch.zeros(len(self.settings.lr), 2, dtype=torch.int64, device=self.here.device)
        own = np.arange(self.here.rank, len(val), self.here.size)
        for start in range(0, len(own), CHUNK):
            positions = own[start : start + CHUNK]
            features, labels = val.rows(positions), val.labels_N[positions]
            hits += self.classifiers.hits(features.to(self.here.device), labels.to(self.here.device))
        if self.here.size > 1:
            dist.all_reduce(hits)
        return (100 * hits.double() / len(val)).tolist()

    def _identity(self) -> dict[str, Any]:
        """All that decides the result."""
        return {
            "encoder": self.frozen.digest, "train": self.sets.train.digest, "val": self.sets.val.digest,
            "image_size": self.extractor.crop, "resize": self.extractor.resize, **self.settings.deciding(),
        }  # fmt: skip

    def _plain(self) -> dict[str, Any]:
        values = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self.settings).items()}
        return values | {"probe": self._identity()}

    def _result(self, accuracy: list[list[float]]) -> dict[str, Any]:
        rows = [
            {"lr": rate, "linear_top1": top1, "linear_top5": top5}
            for rate, (top1, top5) in zip(self.settings.lr, accuracy, strict=True)
        ]
        sizes = {"train": len(self.sets.train_ids), "val": len(self.sets.val_ids), "classes": self.sets.classes}
        return rows[0] | {
            "results": rows, **sizes, "steps": self.step, "checkpoint": self.settings.checkpoint,
            "arch": self.frozen.arch, "probe": self._identity(),
        }  # fmt: skip

    def _resume(self) -> None:
        newest = checkpoint.newest_of_same(
            self.settings.out / "checkpoints", FORMAT, "probe", self._identity(), "probe"
        )
        if newest is None:
            return
        path, state = newest
        self.classifiers.load_state(state)
        self.step = state["progress"]["step"]
        if self.here.is_main:
            log.info("continuing from %s: %d steps are done", path, self.step)

    def _save(self) -> None:
        if not self.here.is_main:
            return
        state = {"format": FORMAT, "probe": self._identity(), "progress": {"step": self.step}}
        checkpoint.save(self.settings.out / "checkpoints", state | self.classifiers.state(), KEEP)
