"""kNN accuracy during pretraining."""

from __future__ import annotations

from fastmoco.config import Config
from fastmoco.distributed import World, broadcast_buffers
from fastmoco.model.moco import MoCo
from fastmoco.probes.knn import Probe
from fastmoco.probes.sets import resize_for


class KnnMonitor:
    """Top-1 accuracy of a kNN classifier on the query encoder's pooled features."""

    def __init__(self, config: Config, here: World) -> None:
        assert config.knn_val is not None  # checked by Config
        self.config = config
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
        encoder = model.encoder.backbone
        broadcast_buffers(encoder)
        return self.probe(encoder, self.config.knn_k, self.config.knn_temperature)
