"""MoCo's two views with DALI alone: its WebDataset reader, its operators and its random numbers.

This is the graph that a user of DALI would write. fastmoco's own (`pipelines.dali_graph`) is fed with bytes and draws.
"""

from __future__ import annotations

from typing import Any

import nvidia.dali
import nvidia.dali.fn
import nvidia.dali.types
import torch
from nvidia.dali.plugin.pytorch import DALIGenericIterator

from _peers.work import Batches, Work

# DALI's annotations do not know the graphs that its tracer builds
dali: Any = nvidia.dali
fn: Any = nvidia.dali.fn
types: Any = nvidia.dali.types

_SHUFFLED = 1024  # encoded images in the reader's shuffle buffer


def batches(work: Work) -> Batches:
    """Query and key of each batch, on the device."""
    on_gpu = work.device == "cuda"
    graph = _two_views(
        work, on_gpu, batch_size=work.batch_size, num_threads=work.workers, device_id=0 if on_gpu else None
    )
    # without a size it never ends, so that no epoch's end interrupts the prefetching
    for batch in DALIGenericIterator(graph, ["query", "key"]):
        yield batch[0]["query"], batch[0]["key"]


@dali.pipeline_def(enable_conditionals=True)
def _two_views(work: Work, on_gpu: bool) -> tuple[Any, ...]:
    tars = sorted(work.shards.glob("*.tar"))
    encoded = fn.readers.webdataset(
        paths=[str(tar) for tar in tars], index_paths=[str(tar.with_suffix(".idx")) for tar in tars], ext=["jpg"],
        random_shuffle=True, initial_fill=_SHUFFLED,
    )  # fmt: skip
    # the whole image, which both views are cropped from
    images = fn.decoders.image(
        encoded, device="mixed" if on_gpu else "cpu", output_type=types.RGB, adjust_orientation=False
    )
    return tuple(_view(images, work) for _ in range(2))


def _view(images: Any, work: Work) -> Any:
    """One view; numbers are drawn per image by DALI's generators, which all have seeds of their own."""
    spec = work.spec
    size = [spec.image_size, spec.image_size]
    view = fn.random_resized_crop(
        images, size=size, random_area=spec.area, random_aspect_ratio=spec.ratio, antialias=True
    )
    # 1 or 0, by which the factors of an image without jitter or grey become neutral: one pass for both operations
    jitter, colour = fn.random.coin_flip(probability=spec.jitter), fn.random.coin_flip(probability=1 - spec.grey)

    def drawn(width: float) -> Any:
        return jitter * fn.random.uniform(range=(-width, width))

    view = fn.color_twist(
        view, brightness=1 + drawn(spec.brightness), contrast=1 + drawn(spec.contrast),
        saturation=colour * (1 + drawn(spec.saturation)), hue=drawn(360 * spec.hue),
    )  # fmt: skip
    # DALI splits the batch here: only the images with a blur pay for one
    if fn.random.coin_flip(probability=spec.blur, dtype=types.BOOL):
        view = fn.gaussian_blur(view, sigma=fn.random.uniform(range=spec.sigma))
    return fn.crop_mirror_normalize(
        view, dtype=types.FLOAT16 if work.dtype is torch.float16 else types.FLOAT,
        mirror=fn.random.coin_flip(probability=spec.flip),
        mean=[255 * mean for mean in spec.mean], std=[255 * std for std in spec.std],
    )  # fmt: skip
