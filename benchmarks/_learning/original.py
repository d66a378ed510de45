"""Trains as `fastmoco train` does, but on views that the original MoCo's loader makes of a folder of images.

    PYTHONPATH=benchmarks python -m _learning.original FOLDER [flags of fastmoco train]

FOLDER holds the images of --shards as files in class folders. Model, initial weights, steps, schedule and probes are
those of the flags; sample order and views come from a torch DataLoader (arXiv 1911.05722, section 3.3, and
arXiv 2003.04297, section 3). Runs in one process; an interrupted run resumes with the batches that it would have had.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from _command import BenchmarkError
from _peers import dataloader
from fastmoco.config import Config
from fastmoco.ranks.world import world
from fastmoco.runs.folder import run_folder
from fastmoco.runs.log import set_up_logging
from fastmoco.train import parse
from fastmoco.trainer.data import check_samples, open_data
from fastmoco.trainer.loop import Trainer, wanted
from pipelines import TwoViews, ViewSpec
from pipelines.augmentation import ViewPair
from shards.command import command


class Images(ImageFolder):
    """Two views of each image of a folder of class folders, and the image's place in it.

    Args:
        folder: the folder.
        spec: the augmentation, by Pillow and the transforms of torchvision's v1.

    Raises:
        BenchmarkError: there is no image in class folders.
    """

    def __init__(self, folder: Path, spec: ViewSpec) -> None:
        try:
            super().__init__(folder, dataloader.TwoViews(dataloader.pillow_view(spec)))
        except FileNotFoundError as error:
            raise BenchmarkError(
                f"{folder} has no images in class folders ({error}); give the folder that --train was packed from"
            ) from None

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Query and key, float32[3, S, S], normalised; and the index."""
        (query, key), _ = super().__getitem__(index)
        return query, key, index


class OriginalPipeline:
    """The original's loader as a `pipelines.contract.TwoViewPipeline`.

    Each epoch is a new pass of a DataLoader that shuffles, drops the last incomplete batch, and draws from a generator
    of this epoch. So its random numbers neither depend on the model's nor change them, and a resumed run makes the
    batches that it would have had: those before its place are loaded again and dropped.

    Args:
        images: the images.
        batch_size: images per step.
        workers: worker processes, at least one: the main process would draw views from the model's generator.
        seed: of the run; with another number of workers the same seed gives other views.
        device: where the views go.
        dtype: of the views.
    """

    backend = "original"
    reason = "the original MoCo's loader: files, Pillow, torchvision's transforms v1, torch DataLoader"
    order = "DataLoader"
    quarantined = 0

    def __init__(
        self, images: Images, *, batch_size: int, workers: int, seed: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.steps_per_epoch = len(images) // batch_size
        self._images, self._batch_size, self._workers, self._seed = images, batch_size, workers, seed
        self._device, self._dtype = device, dtype

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[TwoViews]:
        """See `pipelines.contract.TwoViewPipeline.epoch`."""
        generator = torch.Generator()
        generator.manual_seed(int(np.random.SeedSequence([self._seed, epoch]).generate_state(1)[0]))
        batches = DataLoader(
            self._images, self._batch_size, shuffle=True, drop_last=True, num_workers=self._workers,
            generator=generator,
        )  # fmt: skip
        for query, key, ids in islice(batches, start_step, None):
            yield TwoViews(self._moved(query), self._moved(key), ids)

    def _moved(self, views: torch.Tensor) -> torch.Tensor:
        return views.to(self._device, self._dtype, memory_format=torch.channels_last)

    def close(self) -> None:
        """Nothing to release: workers end with their epoch."""

    def __enter__(self) -> OriginalPipeline:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def build(
    folder: Path,
    samples: int,
    pair: ViewPair,
    options: Config,
    *,
    global_batch: int,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    **_: Any,
) -> OriginalPipeline:
    """The pipeline of a run in one process; takes the place of `pipelines.build`.

    Args:
        folder: the images in class folders.
        samples: images of the shard set; the folder must have as many.
        pair: the augmentation, which must be that of MoCo v2.
        options: of the run; its threads are the number of worker processes.
        global_batch: images per step.
        seed: of the run.
        device: where the views go.
        dtype: of the views.

    Raises:
        BenchmarkError: the folder has other images than the set, or the augmentation is another.
    """
    spec = ViewSpec.moco_v2(pair.image_size)
    if pair != ViewPair.of(spec):
        raise BenchmarkError("the original's loader has the views of MoCo v2 only; leave out flags of the augmentation")
    images = Images(folder, spec)
    if len(images) != samples:
        raise BenchmarkError(
            f"--images {folder} has {len(images)} images, and the packed set {samples}; "
            "give the folder that --train was packed from"
        )
    return OriginalPipeline(
        images, batch_size=global_batch, workers=options.threads or 1, seed=seed, device=device, dtype=dtype
    )


def train(folder: Path, config: Config) -> Path:
    """Train with the settings of `config` on the images in `folder`; returns the run folder.

    Raises:
        BenchmarkError: see `build`.
        ConfigError, shards.ShardSetError, checkpoint.CheckpointError: settings, data or checkpoints do not fit.
    """
    with world(timedelta(minutes=config.rank_timeout)) as here, open_data(config) as packed:
        data = replace(packed, build=partial(build, folder, packed.samples))
        check_samples(data, config)
        with run_folder(config.out, here, wanted(config, data), config.notify) as run:
            Trainer(config, here, data, run, None).run()
            return run


def main() -> None:
    """Train under the command line's settings."""
    folder, *flags = sys.argv[1:]
    set_up_logging()
    train(Path(folder), parse(flags))


if __name__ == "__main__":
    command("learning", main)
