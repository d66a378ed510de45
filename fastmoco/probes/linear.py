"""The linear probe: classifiers trained on a frozen encoder's features. A resumed probe equals a whole one exactly."""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from fastmoco.checkpoints import checkpoint
from fastmoco.probes.classifiers import Classifiers
from fastmoco.probes.encoders import Frozen, unchanged
from fastmoco.probes.features import Bank, Extractor, check_bad, chosen
from fastmoco.probes.linear_data import BankFeatures, CropFeatures, Source
from fastmoco.probes.linear_settings import LinearSettings
from fastmoco.probes.sets import LabelledSets, resize_for
from fastmoco.probes.together import of_all_ranks
from fastmoco.ranks.world import World
from fastmoco.runs.folder import Wanted, run_folder, same_identity
from fastmoco.runs.run import Run
from fastmoco.settings import plain
from pipelines import LabelledCrops, ViewSpec

log = logging.getLogger(__name__)

FORMAT = "fastmoco-linear/1"
"""Format of the probe's checkpoints: `probe` (what determines the result), `progress` {step}, `heads`, `optimiser`."""
CHUNK = 8192
"""Features that are classified at once."""


class LinearProbe(Run):
    """One probe on one rank.

    Args:
        settings: settings of the probe.
        frozen: the encoder; moved to the rank's device.
        here: this rank.

    Attributes:
        sets: the two sets.
        backend: `dali-gpu`, `dali-cpu` or `torch`, which reads the images.
        classifiers: one for each learning rate.

    Raises:
        ProbeError, PipelineError: a set has no labels, validation images have an unknown class, or the batch does not
            fit the set or the ranks.
    """

    layout = FORMAT
    may_diverge = True  # one classifier may, and the others are as good as without it

    def __init__(self, settings: LinearSettings, frozen: Frozen, here: World) -> None:
        self.settings, self.frozen = settings, frozen
        self.sets = LabelledSets(settings.train, settings.val)
        if here.is_main:
            for note in self.sets.notes():
                log.info(note)
        steps_per_epoch = len(self.sets.train_ids) // settings.batch_size
        super().__init__(
            here, settings.out, steps_per_epoch, settings.epochs * steps_per_epoch, settings,
            batch_size=settings.batch_size, evaluate_every=steps_per_epoch,
        )  # fmt: skip
        self.backend, options = chosen(settings.reading, here)
        size = settings.image_size or frozen.image_size
        self.extractor = Extractor(
            frozen.encoder.to(here.device), frozen.digest, settings.resize or resize_for(size), size, here,
            max(1, settings.batch_size // here.size), settings.precision, options, settings.cache,
        )  # fmt: skip
        self.classifiers = Classifiers(
            self.extractor.dim, self.sets.classes, settings.lr, momentum=settings.momentum,
            weight_decay=settings.weight_decay, seed=settings.seed, device=here.device,
        )  # fmt: skip

    def run(self) -> dict[str, Any]:
        """Train to the end, and evaluate.

        Returns:
            The settings and, for each learning rate, top-1 and top-5 accuracy in percent.

        Raises:
            CheckpointError: the run folder holds another probe's checkpoints.
            FolderInUse: another process writes to it.
            ProbeError: the encoder changed during the probe.
            Stopped: after a signal (`shards.interrupts.SIGNALS`), once the state is saved.
        """
        same = partial(same_identity, "probe", self._identity(), {})
        wanted = Wanted(f"linear-{self.frozen.arch}", self.total_steps, same)
        with run_folder(self.settings.out, self.here, wanted, self.settings.notify) as self.folder:
            return self._run()

    def _run(self) -> dict[str, Any]:
        self.resume()
        with unchanged(self.frozen.encoder):
            source = self._source()
            # computed once: the encoder is frozen, so all evaluations use the same features
            val = self.extractor.bank(self.sets.val, self.sets.val_ids, "val").relabelled(self.sets.val_labels)
            if not self.at_end:
                with self.opened(plain(self.settings) | {"probe": self._identity()}):
                    self._train(source, val)
            self._warn_of_divergence()
            accuracy = self._accuracy(val, self.sets.among)
            of_all = accuracy if self.sets.among is None else self._accuracy(val, None)
            bad = of_all_ranks(source.bad, self.here)
            check_bad(len(bad), len(self.sets.train_ids), "train", self.sets.train)
            return self._result(accuracy, of_all, {"train": len(bad), "val": len(val.bad)})

    def _warn_of_divergence(self) -> None:
        """Warn of classifiers whose weights are not finite: they give chance whatever the encoder is."""
        for rate, finite in zip(self.settings.lr, self.classifiers.finite(), strict=True):
            if not finite and self.here.is_main:
                log.warning("the classifier of --lr %g has diverged: its accuracy is chance; use a lower rate", rate)

    def _source(self) -> Source:
        settings, here = self.settings, self.here
        if settings.fast:
            bank = self.extractor.bank(self.sets.train, self.sets.train_ids, "train")
            return BankFeatures(bank, settings.batch_size, settings.seed, here)
        crops = LabelledCrops(
            self.sets.train, ViewSpec.probe(self.extractor.crop), global_batch=settings.batch_size, rank=here.rank,
            world_size=here.size, seed=settings.seed, device=here.device, ids=self.sets.train_ids,
            options=self.extractor.options, keep_bad=True,
        )  # fmt: skip
        return CropFeatures(self.extractor, crops)

    def _train(self, source: Source, val: Bank) -> None:
        settings = self.settings
        for features, labels in self.batches(source.epoch):
            factor = settings.factor(self.step // self.steps_per_epoch)
            losses = self.classifiers.step(features, labels, factor, settings.batch_size)
            self.advance()
            end_of_epoch = self.due(self.steps_per_epoch)
            if end_of_epoch or self.due(settings.log_every):
                self._log(losses)
            if end_of_epoch:
                self._evaluate(val)
            self.save_if_due(settings.checkpoint_every or self.steps_per_epoch)

    def _log(self, losses_L: torch.Tensor) -> None:
        """Record the losses of the last batch. One that is not finite is written as null: JSON has no NaN."""
        # ranks' shares are summed, not averaged: each is already divided by the global batch
        named = {
            f"loss/lr{rate:g}": loss if math.isfinite(loss) else None
            for rate, loss in zip(self.settings.lr, self.sum_over_ranks(losses_L), strict=True)
        }
        line = "  ".join(f"{name} {loss}" if loss is None else f"{name} {loss:.4f}" for name, loss in named.items())
        self.record(named, line)

    def _evaluate(self, val: Bank) -> None:
        figures, lines = {}, [f"epoch {self.epochs_done:.0f}"]
        with self.evaluating():
            accuracy = self._accuracy(val, self.sets.among)
        for rate, (top1, top5) in zip(self.settings.lr, accuracy, strict=True):
            figures |= {f"top1/lr{rate:g}": top1, f"top5/lr{rate:g}": top5}
            lines.append(f"lr {rate:g}: top-1 {top1:.2f} %, top-5 {top5:.2f} %")
        self.record(figures, "  ".join(lines))

    def _accuracy(self, val: Bank, among: np.ndarray | None) -> list[list[float]]:
        """Top-1 and top-5 in percent of each classifier among these classes (None: all), the same on all ranks."""
        among_P = None if among is None else torch.from_numpy(among).to(self.here.device)
        hits = torch.zeros(len(self.settings.lr), 2, dtype=torch.int64, device=self.here.device)
        # this rank's part of the bank: no feature is sent
        own = val.own(self.here)
        for start in range(0, len(own), CHUNK):
            positions = own[start : start + CHUNK]
            features, labels = val.rows(positions), val.labels_N[positions]
            hits += self.classifiers.hits(features.to(self.here.device), labels.to(self.here.device), among_P)
        if self.here.size > 1:
            dist.all_reduce(hits)
        return (100 * hits.double() / val.count).tolist()

    def _identity(self) -> dict[str, Any]:
        """All that determines the result."""
        return {
            "encoder": self.frozen.digest, "train": self.sets.train.digest, "val": self.sets.val.digest,
            "image_size": self.extractor.crop, "resize": self.extractor.resize, **self.settings.deciding(),
        }  # fmt: skip

    def _result(
        self, accuracy: list[list[float]], of_all: list[list[float]], left_out: dict[str, int]
    ) -> dict[str, Any]:
        rows = [
            {
                "lr": rate, "linear_top1": top1, "linear_top5": top5,
                "linear_top1_all_classes": all1, "linear_top5_all_classes": all5,
            }
            for rate, (top1, top5), (all1, all5) in zip(self.settings.lr, accuracy, of_all, strict=True)
        ]  # fmt: skip
        # the first learning rate's figures also at the top level, for scripts that give only one
        return rows[0] | {
            "results": rows, **self.sets.summary(), "left_out": left_out, "steps": self.step,
            "checkpoint": self.settings.checkpoint,
            "arch": self.frozen.arch, "pipeline": self.backend, "probe": self._identity(),
        }  # fmt: skip

    def check_resumable(self, path: Path, state: dict[str, Any]) -> None:
        """See `Run.check_resumable`."""
        checkpoint.check_identity(path, state["probe"], self._identity(), "probe")

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Run.load_state`."""
        self.classifiers.load_state(state)

    def state(self) -> dict[str, Any]:
        """See `Run.state`."""
        return {"probe": self._identity(), "progress": {"step": self.step}, **self.classifiers.state()}
