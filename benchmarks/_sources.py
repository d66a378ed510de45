"""The shard set that a benchmark reads, and its batches."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from _command import BenchmarkError
from fastmoco.demo.made import CLASSES, make_images
from pipelines import TwoViewPipeline, TwoViews
from pipelines._threads import cores_of_rank
from shards import PackOptions, ShardSet, pack
from shards.storage.places import is_url


@contextlib.contextmanager
def shard_set(path: str | None, batch_size: int, image_size: int) -> Iterator[tuple[ShardSet, str]]:
    """The set to read and its name in the results: `path`, ./shards if it is a set, or a temporary generated set.

    Args:
        path: folder or URL of a set, or None.
        batch_size: images per batch; a generated set has at least twice as many.
        image_size: side of the views in pixels; generated images are twice as large.

    Raises:
        ShardSetError: `path` is not a set.
        BenchmarkError: it has too few images for a batch.
    """
    # by its manifest: in a checkout, shards/ is also the Python package
    if path is None and (Path("shards") / "manifest.json").is_file():
        path = "shards"
    with contextlib.ExitStack() as stack:
        # only the folder's name: results are published, and paths of the machine are private
        note = path if path is None or is_url(path) else os.path.basename(os.path.abspath(path))
        if path is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="imgs_per_sec-")))
            note, path = f"made, {2 * image_size}x{2 * image_size} pixels", str(folder / "shards")
            make_set(folder, max(256, 2 * batch_size), 2 * image_size)
        shards = stack.enter_context(ShardSet(path))
        if len(shards) < batch_size:
            raise BenchmarkError(
                f"--batch-size {batch_size} is more than the {len(shards)} images of {path}; use at most {len(shards)}"
            )
        yield shards, str(note)


def make_set(folder: Path, images: int, size: int) -> Path:
    """A set of at least `images` generated images of `size` pixels a side, in `folder`/shards."""
    per_class = -(-images // len(CLASSES))
    cores = cores_of_rank()
    step = -(-per_class // cores)
    make = partial(make_images, folder / "images", classes=len(CLASSES), size=size, seed=0)
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:  # not forked: threads may be running here
        parts = [
            pool.submit(make, per_class=min(step, per_class - first), first=first)
            for first in range(0, per_class, step)
        ]
        for part in parts:
            part.result()
    pack(PackOptions(folder / "images", str(folder / "shards")), progress=False)
    return folder / "shards"


def endless(pipeline: TwoViewPipeline) -> Generator[TwoViews, None, None]:
    """Batches of consecutive epochs, without end."""
    for epoch in itertools.count():
        yield from pipeline.epoch(epoch)
