"""Features of a set, computed part by part and written while the next ones are computed."""

from __future__ import annotations

import logging
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import numpy as np

from fastmoco.features.job import Job, bad_images, begin
from fastmoco.features.parts import (
    EmbeddingError,
    done_parts,
    record_of,
    write_about,
    write_part,
)
from fastmoco.features.rows import Rows
from fastmoco.probes.features import check_bad
from fastmoco.probes.together import attempt
from fastmoco.ranks.images import Opened, agree_on_images
from fastmoco.ranks.world import from_all
from fastmoco.runs.progress import progress
from pipelines import LabelledPipeline
from shards._software import version_of
from shards.progress import Bar
from shards.words import counted

log = logging.getLogger(__name__)


def write_features(job: Job) -> dict[str, Any]:
    """Write the features of all images that the output does not have yet. All ranks call it.

    Returns:
        What embedding.json holds.

    Raises:
        ImagesDiffer: ranks opened different images.
        EmbeddingError: the output holds other features, or files that are none.
        FeatureError: too many images are bad, or a feature is not finite.
        OSError: the output cannot be written.
    """
    agree_on_images(job.here, Opened.of(job.shard_set))
    with ExitStack() as stack:
        attempt(job.here, lambda: begin(job, stack))
        done = attempt(job.here, lambda: bad_images(job, done_parts(job.store, job.kind)))
        left = [part for part in range(job.parts) if part not in done]
        if done and job.here.is_main:
            log.info("%s of %d are done already", counted(len(done), "part"), job.parts)
        own = left[job.here.rank :: job.here.size]
        if own:
            _compute(job, own, len(left), _LeftOut(job, done))
        from_all(job.here, None)  # a rank that fails ends its process, and torchrun the others
        return attempt(job.here, lambda: _complete(job))


class _LeftOut:
    """Counts the images that are left out, by all ranks and earlier starts, and ends the work once they are too many.

    Args:
        job: the work.
        done: number of such images in the parts of earlier starts.
    """

    def __init__(self, job: Job, done: dict[int, int]) -> None:
        self._job, self._others, self._own = job, dict(done), 0
        self._own_parts: set[int] = set()

    def add(self, count: int) -> None:
        """Count images of this rank; raises FeatureError."""
        shard_set, self._own = self._job.shard_set, self._own + count
        check_bad(self._own + sum(self._others.values()), len(shard_set), str(shard_set.path), shard_set)

    def finish(self, part: int) -> None:
        """Note that a part is this rank's, and count those that other ranks have written since; raises OSError."""
        self._own_parts.add(part)
        if self._job.here.size > 1:
            new = done_parts(self._job.store, self._job.kind) - self._own_parts - self._others.keys()
            self._others |= bad_images(self._job, new)


def _complete(job: Job) -> dict[str, Any]:
    """Write embedding.json, on rank 0, once all parts are there."""
    if not job.here.is_main:
        return {}
    missing = sorted(set(range(job.parts)) - done_parts(job.store, job.kind))
    if missing:
        raise EmbeddingError(f"part {missing[0]} of {job.store.url} has gone; run the same command again")
    records = [record_of(job.store, part) for part in range(job.parts)]
    left_out = sum(len(record["left_out"]) for record in records)
    check_bad(left_out, len(job.shard_set), str(job.shard_set.path), job.shard_set)
    about = job.identity() | job.about | {
        "rows": sum(record["rows"] for record in records), "left_out": left_out,
        "classes": list(job.shard_set.classes), "made_by": {"fastmoco": version_of("fastmoco")}, "complete": True,
    }  # fmt: skip
    write_about(job.store, about)
    return about


def _compute(job: Job, own: list[int], left: int, bad: _LeftOut) -> None:
    """Compute this rank's parts, each written by another thread while the next one is computed."""
    with (
        ThreadPoolExecutor(1, "features") as writer,
        progress("features", sum(len(job.ids(part)) for part in own) * left // len(own)) as bar,
        closing(_parts(job, own, left, bar, bad)) as parts,
    ):
        writing: Future[None] | None = None
        for part, rows, left_out in parts:
            if writing is not None:
                writing.result()  # one part waits at most, and an error ends the work
            classes = job.shard_set.classes
            writing = writer.submit(write_part, job.store, part, rows, left_out, job.kind, classes)
            bad.finish(part)
        if writing is not None:
            writing.result()


def _parts(
    job: Job, own: list[int], left: int, bar: Bar, bad: _LeftOut
) -> Generator[tuple[int, Rows, list[int]], None, None]:
    """Number, rows, and ids of the images that are left out, of each of this rank's parts; of `left` of all ranks."""
    extractor = job.extractor
    pipeline = LabelledPipeline(
        job.shard_set, resize=extractor.resize, crop=extractor.crop, batch_size=extractor.batch_size,
        device=extractor.here.device, ids=np.concatenate([job.ids(part) for part in own]), options=extractor.options,
        keep_bad=True, mean=extractor.normalisation["mean"], std=extractor.normalisation["std"],
        scaling=extractor.scaling_of(job.shard_set),
    )  # fmt: skip
    extractor.encoder.eval()
    # one pipeline over all parts, whose batches do not end where parts do: none waits for the next one to start
    batches, held, count, read = iter(pipeline), list[tuple[np.ndarray, ...]](), 0, 0
    for part in own:
        size = len(job.ids(part))
        while count < size:
            batch = next(batches)
            bad.add(len(batch.bad))
            good = np.array([place not in batch.bad for place in range(len(batch.ids))])
            held.append((extractor.encode_finite(batch.images), batch.ids.numpy(), batch.labels.numpy(), good))
            count, read = count + len(good), read + len(good)
            bar.reach(read * left // len(own))  # the other ranks are about as far
        columns = [np.concatenate(column) for column in zip(*held, strict=True)]
        features, ids, labels, good = (column[:size] for column in columns)
        held, count = [tuple(column[size:] for column in columns)], count - size
        yield part, _rows(job, features[good], ids[good], labels[good]), ids[~good].tolist()


def _rows(job: Job, features: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Rows:
    with np.errstate(over="ignore"):
        stored = features.astype(job.dtype)
    if not np.isfinite(stored).all():
        raise EmbeddingError("some features are too large for float16; use --dtype float32 and another --out")
    urls = job.shard_set.urls(ids)
    return Rows(stored, ids, job.shard_set.names(ids), labels, urls if any(urls) else ())
