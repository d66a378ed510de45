"""What the linear probe and fine-tuning share: a classifier is trained on one labelled set and evaluated on another."""

from __future__ import annotations

import logging
from abc import abstractmethod
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fastmoco.architectures import in_file_name
from fastmoco.checkpoints import checkpoint
from fastmoco.probes.encoders import Frozen
from fastmoco.probes.features import Extractor, chosen
from fastmoco.probes.sets import LabelledSets
from fastmoco.probes.settings import ClassifierSettings
from fastmoco.probes.together import of_all_ranks
from fastmoco.ranks.world import World
from fastmoco.runs.folder import Wanted, run_folder, same_identity
from fastmoco.runs.run import Run
from fastmoco.scalings import scaling_for
from fastmoco.views import resize_for
from pipelines import LabelledCrops, ViewSpec

log = logging.getLogger(__name__)


class Classification(Run):
    """One training of a classifier on one rank.

    Args:
        settings: settings of the training.
        epochs: its length.
        frozen: the encoder; moved to the rank's device.
        sets: the two sets.
        here: this rank.
        cache: folder of features from earlier calls; None for no cache.

    Attributes:
        key: under which config.json and checkpoints hold what determines the result.
        what: what the run is called in messages and in the name of its folder.
        backend: `dali-gpu`, `dali-cpu` or `torch`, which reads the images.
        bad: ids of the bad training images that this rank has met; after a gather, and of the steps before a
            checkpoint, of all ranks.
        extractor: computes the features of centre crops.

    Raises:
        PipelineError: the batch does not fit the set or the ranks.
        ConfigError: the encoder takes images of one channel, and a set has images in colour.
    """

    key: ClassVar[str]
    what: ClassVar[str]

    def __init__(
        self,
        settings: ClassifierSettings,
        epochs: int,
        frozen: Frozen,
        sets: LabelledSets,
        here: World,
        cache: Path | None = None,
    ) -> None:
        self.frozen, self.sets, self._common, self.bad = frozen, sets, settings, set[int]()
        frozen.check_images(sets.train, sets.val)
        if here.is_main:
            for note in sets.notes():
                log.info(note)
        steps_per_epoch = len(sets.train_ids) // settings.batch_size
        super().__init__(
            here, settings.out, steps_per_epoch, epochs * steps_per_epoch, settings,
            batch_size=settings.batch_size, evaluate_every=steps_per_epoch,
        )  # fmt: skip
        self.backend, options = chosen(settings.reading, here, sets.train, sets.val)
        size = settings.image_size or frozen.image_size
        self.extractor = Extractor(
            frozen.encoder.to(here.device), frozen.digest, settings.resize or resize_for(size), size, here,
            max(1, settings.batch_size // here.size), settings.precision, options, cache,
            # one for both sets: equal values stay equal
            scaling=scaling_for(frozen.encoder.image_scaling, sets.train, sets.val),
        )  # fmt: skip
        if here.is_main:
            self.extractor.log_scaling(sets.train, sets.val)

    def run(self) -> dict[str, Any]:
        """Train to the end, and evaluate.

        Returns:
            The settings and the accuracies in percent.

        Raises:
            CheckpointError: the run folder holds another run's checkpoints.
            FolderInUse: another process writes to it.
            Stopped: after a signal (`shards.interrupts.SIGNALS`), once the state is saved.
        """
        same = partial(same_identity, self.key, self.identity(), {})
        wanted = Wanted(f"{self.what}-{in_file_name(self.frozen.arch)}", self.total_steps, same)
        with run_folder(self._common.out, self.here, wanted, self._common.notify) as self.folder:
            return self._run()

    @abstractmethod
    def _run(self) -> dict[str, Any]: ...

    def crops(self) -> LabelledCrops:
        """This rank's training images: random crops, flipped at random. Bad images are marked."""
        here, common = self.here, self._common
        spec = replace(ViewSpec.probe(self.extractor.crop), **self.extractor.normalisation)
        return LabelledCrops(
            self.sets.train, spec, global_batch=common.batch_size, rank=here.rank,
            world_size=here.size, seed=common.seed, device=here.device, ids=self.sets.train_ids,
            options=self.extractor.options, keep_bad=True, scaling=self.extractor.scaling_of(self.sets.train),
        )  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """All that determines the result."""
        return {
            "encoder": self.frozen.digest, "train": self.sets.train.digest, "val": self.sets.val.digest,
            **self.extractor.of_images(self.sets.train, self.sets.val), **self.deciding(),
        }  # fmt: skip

    @abstractmethod
    def deciding(self) -> dict[str, Any]:
        """The settings that determine the result, in plain values."""

    def about(self, left_out: dict[str, int]) -> dict[str, Any]:
        """What a result holds besides its figures."""
        return {
            **self.sets.summary(), "left_out": left_out, "steps": self.step, "checkpoint": self._common.checkpoint,
            "arch": self.frozen.arch, "pipeline": self.backend, self.key: self.identity(),
        }  # fmt: skip

    def progress(self) -> dict[str, Any]:
        """The part `progress` of a checkpoint."""
        return {"step": self.step, "bad": sorted(self.bad)}

    def gather_state(self) -> None:
        """See `Run.gather_state`."""
        self.bad |= self.all_bad()

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Run.load_state`."""
        self.bad |= set(state["progress"].get("bad", ()))  # earlier versions forgot them

    def all_bad(self) -> set[int]:
        """`bad` of all ranks, which all call it."""
        return set(of_all_ranks(np.array(sorted(self.bad), np.int64), self.here).tolist())

    def check_resumable(self, path: Path, state: dict[str, Any]) -> None:
        """See `Run.check_resumable`."""
        checkpoint.check_identity(path, state[self.key], self.identity(), f"{self.what} run")
