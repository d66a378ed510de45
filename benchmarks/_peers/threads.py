"""Contestants that load in threads of one process: fastmoco's backends, FFCV, and decoding alone."""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any, Literal

import numpy as np
import torch

from _packing.rivals import ffcv_writer
from _peers.work import Batches, Work
from pipelines import PipelineOptions, build
from pipelines._threads import worker_pool
from pipelines.decode import Memory, decode
from shards import ShardSet

# images per task of a thread: submitting a task costs as much as a small image's colours
_TOGETHER = 8


def torch_backend(work: Work) -> Batches:
    """The torch backend, which the others are compared with."""
    yield from _pipeline(work, "torch")


def dali(work: Work) -> Batches:
    """The same pipeline with DALI: on a CPU with its CPU operators, on as many threads."""
    yield from _pipeline(work, "dali")


def _pipeline(work: Work, backend: Literal["torch", "dali"]) -> Batches:
    # beside a GPU fastmoco leaves two of the cores to other threads
    options = PipelineOptions(pipeline=backend, threads=work.workers if work.device == "cpu" else None)
    with (
        ShardSet(work.shards) as shards,
        build(
            shards, work.spec, options, global_batch=work.batch_size, device=work.device, dtype=work.dtype
        ) as pipeline,
    ):
        for epoch in itertools.count():
            for views in pipeline.epoch(epoch):
                yield views.query, views.key


def ffcv(work: Work) -> Batches:
    """FFCV, which makes one view per decode and has no colour jitter, greyscale or blur."""
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder  # pyright: ignore[reportMissingImports]
    from ffcv.loader import Loader, OrderOption  # pyright: ignore[reportMissingImports]
    from ffcv.transforms import (  # pyright: ignore[reportMissingImports]
        NormalizeImage,
        RandomHorizontalFlip,
        ToDevice,
        ToTensor,
        ToTorchImage,
    )

    file, spec = work.folder / "ffcv" / "all.beton", work.spec
    # written by the first of the repeated measurements, which share the folder; it is not timed
    if not file.exists():
        file.parent.mkdir()
        ffcv_writer(sorted(map(str, work.images.rglob("*.jpg"))), file.parent, work.workers)
    # FFCV normalises levels of 0 to 255
    mean, std = (255 * np.array(numbers) for numbers in (spec.mean, spec.std))
    normalise = [NormalizeImage(mean, std, np.float32), ToTensor(), ToTorchImage()]
    # as in FFCV's own training of ImageNet
    to_device = ToDevice(torch.device("cuda:0"), non_blocking=True)
    on_device = [ToTensor(), to_device, ToTorchImage(), NormalizeImage(mean, std, np.float16)]
    view = [
        RandomResizedCropRGBImageDecoder((spec.image_size, spec.image_size), spec.area, spec.ratio),
        RandomHorizontalFlip(spec.flip),
        *(normalise if work.device == "cpu" else on_device),
    ]
    loader = Loader(
        str(file), work.batch_size, work.workers, order=OrderOption.RANDOM, pipelines={"image": view, "label": None}
    )
    while True:
        yield from loader


def decode_only(work: Work) -> Batches:
    """Read from the tars and decode in full, as the torch backend does, and discard the pixels."""
    memory = Memory()
    with ShardSet(work.shards) as shards, worker_pool(work.workers, "decode") as pool:
        sizes = shards.sizes(np.arange(len(shards))).tolist()

        def some(ids: range) -> None:
            for sample_id in ids:
                # in reused memory, as in the torch backend: the system would have to clear fresh pages for each image
                decode(shards.read(sample_id), tuple(sizes[sample_id]), memory=memory)

        under_way: deque[tuple[range, Any]] = deque()
        for ids in itertools.cycle(_ranges(range(len(shards)), work.batch_size)):
            under_way.append((ids, pool.map(some, _ranges(ids, _TOGETHER))))
            if len(under_way) > 2:  # so that no thread idles at the end of a batch
                done, results = under_way.popleft()
                list(results)
                yield (done,)


def _ranges(ids: range, length: int) -> list[range]:
    return [ids[start : start + length] for start in range(0, len(ids), length)]
