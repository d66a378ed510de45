"""The linear probe: classifiers trained on a frozen encoder's features. A resumed probe equals a whole one exactly."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch

from fastmoco.probes.accuracy import accuracy, figures
from fastmoco.probes.classification import Classification
from fastmoco.probes.classifiers import Classifiers
from fastmoco.probes.encoders import Frozen, unchanged
from fastmoco.probes.features import Bank, check_bad
from fastmoco.probes.linear_data import BankFeatures, CropFeatures, Source
from fastmoco.probes.linear_settings import LinearSettings
from fastmoco.probes.sets import LabelledSets
from fastmoco.ranks.world import World
from fastmoco.settings import plain

log = logging.getLogger(__name__)

FORMAT = "fastmoco-linear/1"
"""Format of the probe's checkpoints: `probe` (what determines the result), `progress` {step, bad: ids of bad training
images}, `heads`, `optimiser`."""


class LinearProbe(Classification):
    """One probe on one rank. `run` raises ProbeError if the encoder changed during the probe.

    Args:
        settings: settings of the probe.
        frozen: the encoder; moved to the rank's device.
        here: this rank.

    Attributes:
        classifiers: one for each learning rate.

    Raises:
        ProbeError, PipelineError: a set has no labels, validation images have an unknown class, or the batch does not
            fit the set or the ranks.
    """

    layout, key, what = FORMAT, "probe", "linear"
    may_diverge = True  # one classifier may, and the others are as good as without it

    def __init__(self, settings: LinearSettings, frozen: Frozen, here: World) -> None:
        self.settings = settings
        sets = LabelledSets(settings.train, settings.val, here=here)
        super().__init__(settings, settings.epochs, frozen, sets, here, settings.cache)
        self.classifiers = Classifiers(
            self.extractor.dim, self.sets.classes, settings.lr, momentum=settings.momentum,
            weight_decay=settings.weight_decay, seed=settings.seed, device=here.device,
        )  # fmt: skip

    def _run(self) -> dict[str, Any]:
        self.resume()
        with unchanged(self.frozen.encoder):
            source = self._source()
            # computed once: the encoder is frozen, so all evaluations use the same features
            val = self.extractor.bank(self.sets.val, self.sets.val_ids, "val").relabelled(self.sets.val_labels)
            if not self.at_end:
                with self.opened(plain(self.settings) | {self.key: self.identity()}):
                    self._train(source, val)
            self._warn_of_divergence()
            own = accuracy(self.classifiers.heads, val, self.sets.among, self.here)
            of_all = own if self.sets.among is None else accuracy(self.classifiers.heads, val, None, self.here)
            bad = len(self.all_bad())
            check_bad(bad, len(self.sets.train_ids), "train", self.sets.train)
            return self._result(own, of_all, {"train": bad, "val": len(val.bad)})

    def _warn_of_divergence(self) -> None:
        """Warn of classifiers whose weights are not finite: they give chance whatever the encoder is."""
        for rate, finite in zip(self.settings.lr, self.classifiers.finite(), strict=True):
            if not finite and self.here.is_main:
                log.warning("the classifier of --lr %g has diverged: its accuracy is chance; use a lower rate", rate)

    def _source(self) -> Source:
        settings, here = self.settings, self.here
        if settings.fast:
            bank = self.extractor.bank(self.sets.train, self.sets.train_ids, "train")
            self.bad |= set(self.sets.train_ids[bank.bad].tolist())
            return BankFeatures(bank, settings.batch_size, settings.seed, here)
        return CropFeatures(self.extractor, self.crops(), self.bad)

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
        named, lines = {}, [f"epoch {self.epochs_done:.0f}"]
        with self.evaluating():
            found = accuracy(self.classifiers.heads, val, self.sets.among, self.here)
        for rate, (top1, top5) in zip(self.settings.lr, found, strict=True):
            named |= {f"top1/lr{rate:g}": top1, f"top5/lr{rate:g}": top5}
            lines.append(f"lr {rate:g}: top-1 {top1:.2f} %, top-5 {top5:.2f} %")
        self.record(named, "  ".join(lines))

    def deciding(self) -> dict[str, Any]:
        """See `Classification.deciding`."""
        return self.settings.deciding()

    def _result(self, own: list[list[float]], of_all: list[list[float]], left_out: dict[str, int]) -> dict[str, Any]:
        rows = [
            {"lr": rate} | figures("linear", *both) for rate, *both in zip(self.settings.lr, own, of_all, strict=True)
        ]
        # the first learning rate's figures also at the top level, for scripts that give only one
        return rows[0] | {"results": rows, **self.about(left_out)}

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Run.load_state`."""
        super().load_state(state)
        self.classifiers.load_state(state)

    def state(self) -> dict[str, Any]:
        """See `Run.state`."""
        return {self.key: self.identity(), "progress": self.progress(), **self.classifiers.state()}
