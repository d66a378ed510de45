"""One view of each image and its label, for evaluation: centre crops, and the linear probe's random ones."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from pipelines._labelled_reader import LabelledReader, MakeView
from pipelines.augmentation import IMAGENET_MEAN, IMAGENET_STD, ViewSpec
from pipelines.centre import CentreParams, centre_params, centre_view
from pipelines.contract import LabelledBatch
from pipelines.decode import Memory, decode
from pipelines.deep import decode_16, levels
from pipelines.draws import draw
from pipelines.errors import PipelineError
from pipelines.options import PipelineOptions
from pipelines.order.epoch import EpochOrder
from pipelines.torch_cpu import decoded, shrinkage
from pipelines.views import CENTRE, ONE_VIEW, ViewParams
from shards import ShardSet
from shards.format.scaling import Scaling


class LabelledPipeline:
    """Every sample once, in the order of ``ids``: short side resized (antialiased bilinear), centre crop, normalised.

    It can be iterated over any number of times. A bad image, whose bytes differ from those packed or cannot be decoded,
    is not replaced as in training: it raises PipelineError, or with ``keep_bad`` is marked as bad in its batch.

    Args:
        shards: the packed set.
        resize: short side after the resize, in pixels.
        crop: side of the centre crop, in pixels, at most ``resize``.
        batch_size: images per batch; the last batch may be smaller.
        device: where the images go.
        dtype: of the images.
        ids: int64[M], the samples to read; None for all.
        options: of these, ``pipeline``, ``threads`` and ``decoder_load`` apply; None for the defaults.
        rank: this process among those that share the samples. It reads the samples at rank, rank + world_size, ...
        world_size: number of these processes. Together they read every sample once.
        keep_bad: whether bad images are marked in their batches (``LabelledBatch.bad``) instead of raising.
        mean: means of red, green and blue that are subtracted, in [0, 1]; or one, for images of one channel
            (`ViewSpec`).
        std: standard deviations that are divided by; as many.
        scaling: by which the values of a 16-bit set are scaled; None for its own.

    Attributes:
        backend: `dali-gpu`, `dali-cpu` or `torch`.
        reason: why this one was chosen.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        resize: int,
        crop: int,
        batch_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        ids: np.ndarray | None = None,
        options: PipelineOptions | None = None,
        rank: int = 0,
        world_size: int = 1,
        keep_bad: bool = False,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        scaling: Scaling | None = None,
    ) -> None:
        if not 0 < crop <= resize:
            raise PipelineError(f"crop {crop} does not fit a short side of {resize}: use 1 to {resize}")
        if batch_size < 1:
            raise PipelineError(f"batch_size {batch_size} holds no image: use 1 or more")
        if world_size < 1 or not 0 <= rank < world_size:
            raise PipelineError(f"rank {rank} is not one of {world_size} ranks: use 0 to {world_size - 1}")
        self._resize, self._batch = resize, batch_size
        self._ids = _chosen(ids, shards)[rank::world_size]
        # of the augmentation only the crop's size, mean and deviation apply
        spec = ViewSpec(crop, mean=mean, std=std)
        self._reader = LabelledReader(shards, spec, CENTRE, batch_size, device, dtype, options, keep_bad, scaling)
        self.backend, self.reason = self._reader.backend, self._reader.reason

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self._ids) // self._batch)

    def __iter__(self) -> Iterator[LabelledBatch]:
        return self._reader.batches(
            range(len(self)),
            lambda step: self._ids[step * self._batch : (step + 1) * self._batch],
            self._params,
            lambda ids: partial(self._centre, ids),
        )

    def _params(self, ids: np.ndarray) -> CentreParams:
        return centre_params(self._reader.shards.sizes(ids), self._resize, self._reader.size)

    def _centre(self, ids: np.ndarray, slot: int, encoded: bytes, out: torch.Tensor) -> None:
        shards, channels, scaling = self._reader.shards, self._reader.channels, self._reader.scaling
        if scaling is None:
            pixels = decode(encoded, channels=channels)
        else:
            height, width = shards.sizes(ids[slot : slot + 1])[0].tolist()
            pixels = levels(decode_16(encoded, (height, width), channels), scaling, channels)
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        out.copy_(centre_view(image, self._resize, self._reader.size).permute(1, 2, 0))


class LabelledCrops:
    """The linear probe's training images: a random crop of each, resized and flipped, with its label.

    Crops and flips are drawn as those of a query (`pipelines.draws.draw`), so they follow from (seed, epoch, id). The
    order is `EpochOrder`: shuffled every epoch, whole batches only, the same steps on all ranks. A bad image raises
    PipelineError, or with ``keep_bad`` is marked in its batch.

    Args:
        shards: the packed set.
        spec: the crop's parameters, such as `ViewSpec.probe`.
        global_batch: images per step over all ranks.
        rank: this rank.
        world_size: number of ranks.
        seed: of order and crops.
        device: where the images go.
        dtype: of the images.
        ids: int64[M], the samples to train on, for example those with a label; None for all.
        options: of these, ``pipeline``, ``threads`` and ``decoder_load`` apply; None for the defaults.
        keep_bad: whether bad images are marked in their batches (``LabelledBatch.bad``) instead of raising.
        scaling: by which the values of a 16-bit set are scaled; None for its own.

    Attributes:
        backend: `dali-gpu`, `dali-cpu` or `torch`.
        reason: why this one was chosen.
        steps_per_epoch: batches per epoch, the same on every rank.

    Raises:
        PipelineError: the batch does not fit the samples or the ranks, or ``spec`` has more than crop and flip.
    """

    def __init__(
        self,
        shards: ShardSet,
        spec: ViewSpec,
        *,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        ids: np.ndarray | None = None,
        options: PipelineOptions | None = None,
        keep_bad: bool = False,
        scaling: Scaling | None = None,
    ) -> None:
        if spec.colours or spec.blur or spec.solarize:
            raise PipelineError(
                "spec has jitter, grey, blur or solarize, which labelled crops do not apply: use ViewSpec.probe()"
            )
        self._ids, self._spec, self._seed = _chosen(ids, shards), spec, seed
        self._order = partial(EpochOrder, len(self._ids), global_batch, rank, world_size, seed)
        self.steps_per_epoch = self._order(0).steps
        batch = global_batch // world_size
        self._reader = LabelledReader(shards, spec, ONE_VIEW, batch, device, dtype, options, keep_bad, scaling)
        self.backend, self.reason = self._reader.backend, self._reader.reason
        self._memory = Memory()

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[LabelledBatch]:
        """The batches of an epoch from ``start_step`` on.

        Raises:
            PipelineError: the epoch has no such step.
        """
        steps, order = self.steps_per_epoch, self._order(epoch)
        if not 0 <= start_step <= steps:
            raise PipelineError(f"start_step {start_step} is outside the epoch's steps 0 to {steps}")
        return self._reader.batches(
            range(start_step, steps),
            lambda step: self._ids[order.ids(step)],
            partial(self._params, epoch),
            partial(self._crops, epoch),
        )

    def _params(self, epoch: int, ids: np.ndarray) -> ViewParams:
        sizes = self._reader.shards.sizes(ids)
        return draw(self._spec, seed=self._seed, epoch=epoch, ids=ids, sizes=sizes, view=0)

    def _crops(self, epoch: int, ids: np.ndarray) -> MakeView:
        sizes, params, scaling = self._reader.shards.sizes(ids), self._params(epoch, ids), self._reader.scaling

        def make(slot: int, encoded: bytes, out: torch.Tensor) -> None:
            shrink = shrinkage([params.box[slot]], self._spec.image_size)
            channels = self._reader.channels
            decoded(encoded, sizes[slot].tolist(), shrink, self._memory, channels, scaling)(params, slot, out.numpy())

        return make


def _chosen(ids: np.ndarray | None, shards: ShardSet) -> np.ndarray:
    return np.arange(len(shards)) if ids is None else np.asarray(ids, dtype=np.int64)
