"""Fine-tuning; on CPUs a resumed run equals a whole one bit for bit."""

from __future__ import annotations

import hashlib
import logging
import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from fastmoco.devices import seed_step
from fastmoco.finetuning.labels import Chosen, choose
from fastmoco.finetuning.settings import FinetuneSettings
from fastmoco.finetuning.step import FinetuneStep
from fastmoco.layouts.encoders import FINETUNED
from fastmoco.model.batchnorm import SyncBatchNorm2d, replace_batchnorm
from fastmoco.probes.accuracy import accuracy, figures
from fastmoco.probes.classification import Classification
from fastmoco.probes.encoders import Frozen
from fastmoco.probes.features import FeatureError, check_bad
from fastmoco.probes.sets import LabelledSets, ProbeError
from fastmoco.probes.together import is_agreed
from fastmoco.ranks.world import World, from_main
from fastmoco.runs.errors import Stopped, TrainingError
from fastmoco.scalings import record_of
from fastmoco.settings import plain
from pipelines.contract import LabelledBatch
from shards import ShardSet
from shards.words import counted

log = logging.getLogger(__name__)


class Finetuning(Classification):
    """One fine-tuning on one rank.

    BatchNorm has the statistics of all ranks' images, as in SwAV's script: the result depends on the number of ranks
    by rounding alone.

    Args:
        settings: settings of the training.
        frozen: the encoder to start from; it is trained in place.
        here: this rank.

    Attributes:
        chosen: the images that are trained on.
        recipe: how they are.
        train_step: the network and its optimiser.

    Raises:
        ProbeError, PipelineError: a set has no labels, validation images have an unknown class, the list does not fit
            the set, or the batch does not fit the images or the ranks.
    """

    layout, key, what = FINETUNED, "finetune", "finetune"

    def __init__(self, settings: FinetuneSettings, frozen: Frozen, here: World) -> None:
        self.settings = settings
        sets = LabelledSets(settings.train, settings.val, partial(self._choose, here), here)
        self.share = len(sets.train_ids) / sets.labelled
        self.recipe = settings.training(self.share)
        if settings.batch_size > len(sets.train_ids):
            raise ProbeError(
                f"--batch-size is {settings.batch_size}, more than the {counted(len(sets.train_ids), 'image')} that "
                "are trained on; give a smaller one"
            )
        replace_batchnorm(frozen.encoder.requires_grad_(True), SyncBatchNorm2d)
        super().__init__(settings, self.recipe.epochs, frozen, sets, here)
        self.train_step = FinetuneStep(
            frozen.encoder, sets.classes, self.recipe, settings.momentum, settings.seed, settings.precision, here
        )
        self._found: tuple[int, dict[str, Any]] | None = None  # the last evaluation, and the step that it is of

    def _choose(self, here: World, train: ShardSet, ids: np.ndarray) -> np.ndarray:
        # on one rank, as the names of a large set are many
        self.chosen: Chosen = from_main(here, lambda: choose(train, ids, self.settings, self.settings.seed))
        return self.chosen.ids

    def _run(self) -> dict[str, Any]:
        self.resume()
        if self.owed or not self.at_end:
            settings = plain(self.settings) | self.recipe.values() | {"recipe": self.recipe.name}
            with self.opened(settings | {self.key: self.identity()}):
                self._train()
        evaluated = self._evaluated()
        bad = len(self.all_bad())
        check_bad(bad, len(self.sets.train_ids), "train", self.sets.train)
        left_out = {"train": bad, "val": evaluated.pop("left_out")}
        return evaluated | self.about(left_out) | {"labels": self._labels(), "recipe": self.recipe.name}

    def _train(self) -> None:
        if self.here.is_main:
            self._say_what_is_trained()
        self.train_step.begin(self.extractor.crop)
        if self.owed:
            self._evaluate()
            self.save_once_more()
        crops = self.crops()
        for images, labels in self.batches(lambda epoch, start: map(self._good, crops.epoch(epoch, start))):
            factor = self.recipe.factor(self.step, self.steps_per_epoch)
            # some of timm's encoders drop features by default, as GhostNet and VGG
            seed_step(self.settings.seed, self.step, self.here.rank)
            loss = self.train_step(images, labels, factor)
            self.advance()
            end_of_epoch = self.due(self.steps_per_epoch)
            if end_of_epoch or self.due(self.settings.log_every):
                self._log(loss, factor)
            if end_of_epoch:
                self._evaluate()
            self.save_if_due(self.settings.checkpoint_every or self.steps_per_epoch)

    def _say_what_is_trained(self) -> None:
        labels = self.sets.train.labels(self.sets.train_ids)
        counts = np.unique(labels, return_counts=True)[1]
        each = f"{counts.min():,}" if counts.min() == counts.max() else f"{counts.min():,} to {counts.max():,}"
        log.info(
            f"training on {len(labels):,} of {self.sets.labelled:,} labelled images ({100 * self.share:.3g} %): "
            f"{each} of each of {len(counts):,} classes"
        )
        log.info("%s", self.recipe.in_words())

    def _good(self, batch: LabelledBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels of a batch; the next good one in place of each that is bad."""
        if not batch.bad:
            return batch.images, batch.labels
        self.bad |= {int(batch.ids[place]) for place in batch.bad}
        size = len(batch.labels)
        good = [place for place in range(size) if place not in batch.bad]
        if not good:
            raise FeatureError(f"all {size} images of a batch are bad, as the log says of each; pack the set again")
        taken = [good[int(np.searchsorted(good, place)) % len(good)] for place in range(size)]
        return batch.images[taken], batch.labels[taken]

    def _log(self, loss: torch.Tensor, factor: float) -> None:
        """Record the last batch's loss, as the mean over the ranks."""
        (value,) = self.mean_over_ranks(loss[None])
        # after the exchange, so that all ranks see it and end alike
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {self.step}; start another run with a lower --lr or --head-lr"
            )
        lr, head_lr = self.train_step.rates(factor)
        named = {"loss": value, "lr": lr, "head_lr": head_lr}
        each = self.pace.each()
        if each is not None:
            named["imgs_per_sec"] = self.settings.batch_size / each
        self.record(named, "  ".join(f"{name} {figure:.4g}" for name, figure in named.items()))

    def _evaluate(self) -> None:
        try:
            with self.evaluating():
                found = self._evaluated()
        except Stopped:
            raise
        except Exception as error:
            if is_agreed(error, self.here):
                self.agree(failed=True)  # the epoch's steps are saved, and the next start owes the evaluation
            raise
        top1, top5 = found["finetune_top1"], found["finetune_top5"]
        self.record(
            {"top1": top1, "top5": top5}, f"epoch {self.epochs_done:.0f}  top-1 {top1:.2f} %, top-5 {top5:.2f} %"
        )

    def _evaluated(self) -> dict[str, Any]:
        """The accuracies of the current weights, and the number of bad images. All ranks call it."""
        # an evaluation at the last step serves as the run's result as well
        if self._found is None or self._found[0] != self.step:
            sets, heads = self.sets, nn.ModuleList([self.train_step.network.head])
            val = self.extractor.bank(sets.val, sets.val_ids, "val").relabelled(sets.val_labels)
            (own,) = accuracy(heads, val, sets.among, self.here)
            of_all = own if sets.among is None else accuracy(heads, val, None, self.here)[0]
            self._found = self.step, figures("finetune", own, of_all) | {"left_out": len(val.bad)}
        return dict(self._found[1])

    def _labels(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "images": len(self.sets.train_ids), "of": self.sets.labelled, "fraction": settings.fraction,
            "list": None if settings.list is None else str(settings.list), "missing": len(self.chosen.missing),
        }  # fmt: skip

    def deciding(self) -> dict[str, Any]:
        """See `Classification.deciding`."""
        ids = hashlib.sha256(self.sets.train_ids.tobytes()).hexdigest()
        return {"images": ids, **self.settings.deciding(self.recipe)}

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Run.load_state`."""
        super().load_state(state)
        self.train_step.load_state(state)
        self.owed = state["progress"]["owed"]

    def state(self) -> dict[str, Any]:
        """See `Run.state`."""
        return {
            self.key: self.identity(), "arch": self.frozen.arch, "image_size": self.extractor.crop,
            **{name: list(values) for name, values in self.extractor.normalisation.items()},
            **record_of(self.extractor.scaling_of(self.sets.train)),
            "classes": list(self.sets.train.classes), "progress": {**self.progress(), "owed": self.owed},
            **self.train_step.state(),
        }  # fmt: skip
