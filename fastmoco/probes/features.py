"""Features of a labelled set's centre crops; each rank holds its share in memory, or in files.

N: samples, D: feature dimension, W: ranks. The sample at position p of the N belongs to rank p mod W.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastmoco import scalings
from fastmoco.devices import autocast_dtype, resolved
from fastmoco.precision import warn_if_slower
from fastmoco.probes.cache import cached_parts, key_of
from fastmoco.probes.sets import ProbeError
from fastmoco.probes.together import attempt, is_agreed, of_all_ranks
from fastmoco.ranks.world import World
from fastmoco.results import too_many_bad
from fastmoco.runs.progress import progress
from fastmoco.runs.signals import agree_on_stop, stop_is_asked
from pipelines import LabelledPipeline, PipelineOptions
from pipelines.augmentation import IMAGENET_MEAN, IMAGENET_STD
from pipelines.choice import backend_name, choose
from shards import ShardSet
from shards.format.scaling import Scaling

log = logging.getLogger(__name__)

EQUAL = 1e-5
"""Difference between features, relative to the greatest number, that rounding in float32 may make."""


def chosen(options: PipelineOptions, here: World, *sets: ShardSet) -> tuple[str, PipelineOptions]:
    """The name of the backend that reads the sets' images, logged with its reason, and options that ask for it."""
    backend, reason = choose(options.pipeline, here.device, options.threads, max(each.bits for each in sets))
    name = "torch" if backend == "torch" else backend_name(here.device)
    if here.is_main:
        log.info("labelled images are read by the %s backend: %s", name, reason)
    return name, PipelineOptions(pipeline=backend, threads=options.threads, decoder_load=options.decoder_load)


def check_bad(bad: int, images: int, name: str, shard_set: ShardSet) -> None:
    """Raise FeatureError if too many of a set's images are bad, or all."""
    if too_many_bad(bad, images):
        raise FeatureError(
            f"{bad:,} of {images:,} images of {name} are bad, as the log says of each: run "
            f"`fastmoco verify {shard_set.path}` and pack the set again"
        )


class FeatureError(ProbeError):
    """Features that no probe can use."""

    one_rank = True  # ranks have different images


@dataclass(frozen=True)
class Bank:
    """Features of samples, not normalised.

    Attributes:
        parts: float32 [N_r, D] of each rank that computed them, in memory or mapped from files; None for those in
            another rank's memory. Row i of part r is position i · len(parts) + r.
        labels_N: int64 [N] of all positions, on the CPU; -1 for a sample without a label.
        bad: int64 [n], sorted: positions of images that could not be read as packed, or not decoded. They are left out.
    """

    parts: Sequence[np.ndarray | None]
    labels_N: torch.Tensor
    bad: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def dim(self) -> int:
        """Dimension D."""
        return next(part.shape[1] for part in self.parts if part is not None)

    def relabelled(self, labels_N: np.ndarray) -> Bank:
        """The same features with other labels, int64 [N]."""
        return Bank(self.parts, torch.from_numpy(labels_N), self.bad)

    @property
    def count(self) -> int:
        """Number of images that are not left out."""
        return len(self) - len(self.bad)

    def own(self, here: World) -> np.ndarray:
        """Positions, int64[n], whose features this rank holds, without those that are left out."""
        return np.setdiff1d(np.arange(here.rank, len(self), here.size), self.bad)

    def rows(self, positions: np.ndarray) -> torch.Tensor:
        """Features float32 [n, D] of positions (int64[n]) that this rank holds, on the CPU."""
        out = np.empty((len(positions), self.dim), np.float32)
        # of a bank in memory this rank holds its own part only; of one in files it may read all of them
        owners = positions % len(self.parts)
        for owner in np.unique(owners).tolist():
            part, chosen = self.parts[owner], owners == owner
            assert part is not None, f"a position of rank {owner}, which holds its features in memory"
            out[chosen] = part[positions[chosen] // len(self.parts)]
        return torch.from_numpy(out)


@dataclass(frozen=True)
class Extractor:
    """Computes features by one encoder.

    Attributes:
        encoder: on the rank's device; in evaluation mode while features are computed.
        digest: hash of its weights, for the cache; empty without a cache.
        resize: short side before the crop, in pixels.
        crop: side of the centre crop.
        here: this rank.
        batch_size: images of a batch on a rank.
        precision: precision of the forward pass: fp32, bf16, fp16, or auto.
        options: of the pipeline; None for the defaults.
        cache: folder of features from earlier calls; None for no cache.
        mean: means that images are normalised with; None for the encoder's own, or ImageNet's if it has none.
        std: standard deviations, likewise.
        scaling: of 16-bit values; None for the encoder's own, or each set's if it has none.
    """

    encoder: nn.Module
    digest: str
    resize: int
    crop: int
    here: World
    batch_size: int = 128
    precision: str = "fp32"
    options: PipelineOptions | None = None
    cache: Path | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        if self.here.is_main:
            warn_if_slower(self.precision, self.here.device)

    @property
    def normalisation(self) -> dict[str, tuple[float, ...]]:
        """`mean` and `std` of the images."""
        own = self.encoder  # any module may be given
        return {
            "mean": self.mean or getattr(own, "image_mean", IMAGENET_MEAN),
            "std": self.std or getattr(own, "image_std", IMAGENET_STD),
        }

    @property
    def computed_in(self) -> str:
        """`precision`; for auto the one that this device has: features in another are not the same."""
        return resolved(self.precision, self.here.device)

    def scaling_of(self, shard_set: ShardSet) -> Scaling | None:
        """By which the values of a set are scaled; None if it has 8 bits."""
        return scalings.scaling_for(self.scaling or getattr(self.encoder, "image_scaling", None), shard_set)

    def log_scaling(self, *sets: ShardSet) -> None:
        """Log in one line which sets are not scaled by their own percentiles."""
        used = next((found for found in map(self.scaling_of, sets) if found is not None), None)
        if text := scalings.differing(used, *sets):
            log.info(text)

    def of_images(self, *sets: ShardSet) -> dict[str, Any]:
        """What images of some sets are made into, for records; of earlier versions they had ImageNet's mean and std."""
        size = {"image_size": self.crop, "resize": self.resize}
        usual = self.normalisation == {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        normalised = {} if usual else {name: list(values) for name, values in self.normalisation.items()}
        return size | normalised | scalings.record_of(*map(self.scaling_of, sets))

    def bank(self, shard_set: ShardSet, ids: np.ndarray, name: str = "the images") -> Bank:
        """Features of the samples `ids` (int64[N]) of a set. A collective call: all ranks make it.

        Args:
            shard_set: the set.
            ids: its samples.
            name: the set in messages.

        Raises:
            FeatureError: too many images are bad, or a feature is not finite.
            Exception: of reading; what one rank raises ends the call on all of them (`together.attempt`).
            Stopped: the run that is open was asked to stop.
        """
        try:
            return self._bank(shard_set, ids, name)
        except Exception as error:
            if is_agreed(error, self.here):
                agree_on_stop()
            raise

    def _bank(self, shard_set: ShardSet, ids: np.ndarray, name: str) -> Bank:
        rank, size = self.here.rank, self.here.size

        def opened() -> tuple[torch.Tensor, LabelledPipeline]:
            return torch.from_numpy(shard_set.labels(ids)), LabelledPipeline(
                shard_set, resize=self.resize, crop=self.crop, batch_size=self.batch_size, device=self.here.device,
                ids=ids, options=self.options, rank=rank, world_size=size, keep_bad=True,
                mean=self.normalisation["mean"], std=self.normalisation["std"], scaling=self.scaling_of(shard_set),
            )  # fmt: skip

        labels, pipeline = attempt(self.here, opened)
        shape = len(range(rank, len(ids), size)), self.dim
        fill = partial(self._fill, pipeline=pipeline, total=len(ids), what=f"features of {name}")
        if self.cache is None:

            def computed() -> tuple[np.ndarray, np.ndarray]:
                out = np.empty(shape, np.float32)
                return out, fill(out)

            own, bad = attempt(self.here, computed)
            parts: list[np.ndarray | None] = [own if other == rank else None for other in range(size)]
            bad = of_all_ranks(bad, self.here)
        else:
            key = key_of(
                self.digest, shard_set.digest, ids, self.of_images(shard_set), self.computed_in, pipeline.backend
            )
            files, bad = cached_parts(self.cache, key, self.here, shape, fill)
            parts = list[np.ndarray | None](files)
        check_bad(len(bad), len(ids), name, shard_set)
        first = parts[0] if self.here.is_main else None
        if first is not None:  # a part of files, which another number of ranks may have written
            bad_rows = bad[bad % len(parts) == 0] // len(parts)
            self._warn_if_equal(np.delete(first, bad_rows, 0) if len(bad_rows) else first)
        return Bank(parts, labels, bad)

    @property
    def dim(self) -> int:
        """Dimension D of the encoder's features."""
        out_dim = self.encoder.out_dim
        assert isinstance(out_dim, int)
        return out_dim

    @torch.no_grad()
    def encode(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Features float32 [B, D] of images on the device."""
        dtype = autocast_dtype(self.precision, self.here.device)
        with torch.autocast(self.here.device.type, dtype, enabled=dtype is not None):
            # similarities and classifiers are computed in float32, whatever the encoder's precision
            return self.encoder(images_BCHW).float()

    def encode_finite(self, images_BCHW: torch.Tensor) -> np.ndarray:
        """`encode`, copied to the host; raises FeatureError for a feature that is infinite or not a number."""
        features = self.encode(images_BCHW).cpu().numpy()
        if not np.isfinite(features).all():
            raise FeatureError(
                f"the encoder's features of some images are infinite or not a number in {self.precision}; "
                "use --precision fp32 or another checkpoint"
            )
        return features

    def _fill(self, out_ND: np.ndarray, pipeline: LabelledPipeline, total: int, what: str) -> np.ndarray:
        """Compute this rank's features, of `total` of all ranks; returns the positions of bad images, int64[n]."""
        training, at = self.encoder.training, 0
        bad: list[int] = []
        self.encoder.eval()
        try:
            with progress(what, total) as bar:
                for batch in pipeline:
                    if stop_is_asked():
                        raise FeatureError("the features are not computed: the run was asked to stop")
                    # copied to the host batch by batch: a GPU need not hold the features of a whole set
                    features = self.encode_finite(batch.images)
                    out_ND[at : at + len(features)] = features
                    bad += [(at + place) * self.here.size + self.here.rank for place in sorted(batch.bad)]
                    at += len(features)
                    bar.reach(min(at * self.here.size, total))  # the other ranks are about as far
        finally:
            # the kNN monitor probes an encoder in the middle of its training
            self.encoder.train(training)
        return np.array(bad, np.int64)

    def _warn_if_equal(self, features_ND: np.ndarray) -> None:
        """Warn if all features are equal but for rounding."""
        if len(features_ND) < 2:
            return
        allowed = EQUAL * float(np.abs(features_ND[0]).max())
        # in parts, and only up to the first that differs: a mapped file may hold millions
        for start in range(0, len(features_ND), 1024):
            if np.abs(features_ND[start : start + 1024] - features_ND[0]).max() > allowed:
                return
        log.warning("the encoder's features of all images are equal: it has collapsed, and the result is chance")
