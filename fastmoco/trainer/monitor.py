"""kNN accuracy during pretraining."""

from __future__ import annotations

import logging

from fastmoco.config import Config
from fastmoco.model.moco import MoCo
from fastmoco.probes.features import Bank
from fastmoco.probes.knn import Probe
from fastmoco.probes.sets import resize_for
from fastmoco.ranks.exchange import broadcast_buffers
from fastmoco.ranks.world import World
from fastmoco.report.neighbours import Samples, rows_of
from fastmoco.report.rows import Row

log = logging.getLogger(__name__)


class KnnMonitor:
    """Top-1 accuracy of a kNN classifier on the query encoder's pooled features."""

    def __init__(self, config: Config, here: World) -> None:
        assert config.knn_val is not None  # checked by Config
        self.config, self.here = config, here
        train = config.knn_train or config.shards
        resize = resize_for(config.image_size)
        self.probe = Probe(
            train, config.knn_val, config.image_size, resize, here, options=config, k=config.knn_k, k_flag="--knn-k",
        )  # fmt: skip

    @property
    def images(self) -> int:
        """Number of images that are classified."""
        return len(self.probe.sets.val_ids)

    def __call__(self, model: MoCo) -> float:
        """Top-1 in percent with the current weights; the same value on all ranks."""
        top1, _ = self._probe(model)
        return top1

    def with_neighbours(self, model: MoCo) -> tuple[float, list[Row]]:
        """Top-1, and on rank 0 some validation images with the training images nearest to them."""
        top1, banks = self._probe(model)
        if not self.here.is_main:
            return top1, []
        sets = self.probe.sets
        try:
            train, val = Samples(sets.train, sets.train_ids, banks[0]), Samples(sets.val, sets.val_ids, banks[1])
            return top1, rows_of(val, train, self.here)
        except Exception as error:
            # a picture that is wanted at the last step must not be what ends the run before its last checkpoint
            log.warning("no picture of nearest neighbours: %s", error)
            return top1, []

    def _probe(self, model: MoCo) -> tuple[float, tuple[Bank, Bank]]:
        encoder = model.encoder.backbone
        broadcast_buffers(encoder)
        banks = self.probe.banks(encoder)
        (top1,) = self.probe.table(banks, [(self.config.knn_k, self.config.knn_temperature)])
        return top1, banks
