"""kNN accuracy during pretraining."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch

from fastmoco.channels import check_images
from fastmoco.config import Config
from fastmoco.model.moco import MoCo
from fastmoco.probes.features import Bank
from fastmoco.probes.knn import Probe
from fastmoco.probes.together import in_one_line, is_agreed
from fastmoco.ranks.exchange import broadcast_buffers
from fastmoco.ranks.world import World
from fastmoco.report.neighbours import Samples, rows_of
from fastmoco.report.rows import Row
from fastmoco.runs.errors import Stopped
from fastmoco.views import resize_for

log = logging.getLogger(__name__)


class NoProbe(Exception):
    """A probe could not be made. The message says why."""


class Accuracy(NamedTuple):
    """Top-1 in percent; the number of images that were classified; and of those left out because they are bad."""

    top1: float
    images: int
    left_out: int


class KnnMonitor:
    """Top-1 accuracy of a kNN classifier on the query encoder's pooled features."""

    def __init__(self, config: Config, here: World) -> None:
        assert config.knn_val is not None  # checked by Config
        self.config, self.here = config, here
        train = config.knn_train or config.sets[0]  # with several sets, Config asks for knn_train
        resize = resize_for(config.image_size)
        self.probe = Probe(
            train, config.knn_val, config.image_size, resize, here, options=config, k=config.knn_k, k_flag="--knn-k",
        )  # fmt: skip
        check_images(config.channels, "--channels 1", self.probe.sets.train, self.probe.sets.val)

    def __call__(self, model: MoCo, neighbours: bool = False) -> tuple[Accuracy, list[Row]]:
        """Top-1 with the current weights, the same on all ranks.

        Args:
            model: the model.
            neighbours: whether rank 0 wants some validation images with the training images nearest to them.

        Raises:
            Stopped: the run was asked to stop.
            NoProbe: on all ranks: it cannot be had this time, whatever the reason, and training may go on.
        """
        try:
            top1, banks = self._probe(model)
        except Stopped:
            raise
        except Exception as error:
            if not is_agreed(error, self.here):  # the ranks are no longer in step
                raise
            reason = in_one_line(error)
        else:
            accuracy = Accuracy(top1, banks[1].count, len(banks[1].bad))
            return accuracy, self._neighbours(banks) if neighbours and self.here.is_main else []
        if self.here.device.type == "cuda":
            torch.cuda.empty_cache()  # a probe that had not enough memory leaves what it had to training
        raise NoProbe(reason)

    def _neighbours(self, banks: tuple[Bank, Bank]) -> list[Row]:
        sets = self.probe.sets
        try:
            train, val = Samples(sets.train, sets.train_ids, banks[0]), Samples(sets.val, sets.val_ids, banks[1])
            return rows_of(val, train, self.here)
        except Exception as error:
            # a picture that is wanted at the last step must not be what ends the run before its last checkpoint
            log.warning("no picture of nearest neighbours: %s", error)
            return []

    def _probe(self, model: MoCo) -> tuple[float, tuple[Bank, Bank]]:
        encoder = model.encoder.backbone
        broadcast_buffers(encoder)
        banks = self.probe.banks(encoder)
        (top1,) = self.probe.table(banks, [(self.config.knn_k, self.config.knn_temperature)])
        return top1, banks
