"""Features of a set, computed part by part and written while the next ones are computed."""

from __future__ import annotations

import logging
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastmoco.features.parts import (
    SCHEMA,
    EmbeddingError,
    Rows,
    done_parts,
    read_about,
    record_of,
    stem,
    write_about,
    write_part,
)
from fastmoco.probes.features import Extractor, check_bad
from fastmoco.probes.together import attempt
from fastmoco.ranks.images import Opened, agree_on_images
from fastmoco.ranks.world import World, from_all
from fastmoco.results import too_many_bad
from fastmoco.runs.progress import progress
from pipelines import LabelledPipeline
from shards import ShardSet
from shards._software import version_of
from shards.progress import Bar
from shards.storage.base import Store
from shards.storage.files import sweep
from shards.storage.locking import Held, locked, this_process
from shards.words import counted

log = logging.getLogger(__name__)

_LOCK = "lock"


@dataclass(frozen=True)
class Job:
    """What is computed, and where it is written.

    Attributes:
        shard_set: the images.
        extractor: the encoder, with a world of its own: each rank computes whole parts by itself.
        store: the output.
        kind: `npy` or `parquet`.
        dtype: float32 or float16, of the features in the files.
        part_size: images of a part.
        here: this rank, which computes every `here.size`-th part.
        about: what embedding.json records besides the images and files: encoder, checkpoint, preprocessing.
    """

    shard_set: ShardSet
    extractor: Extractor
    store: Store
    kind: str
    dtype: str
    part_size: int
    here: World
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> int:
        """Number of parts."""
        return -(-len(self.shard_set) // self.part_size)

    def ids(self, part: int) -> np.ndarray:
        """int64[n], the samples of a part."""
        return np.arange(part * self.part_size, min(len(self.shard_set), (part + 1) * self.part_size), dtype=np.int64)

    def identity(self) -> dict[str, Any]:
        """All that decides which features are in which file."""
        extractor = self.extractor
        return {
            "schema": SCHEMA, "format": self.kind, "dtype": self.dtype, "dim": extractor.dim,
            "parts": self.parts, "part_size": self.part_size, "images": len(self.shard_set),
            "set": self.shard_set.digest, "encoder": extractor.digest,
            **extractor.of_images(), "precision": extractor.precision,
        }  # fmt: skip


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
        attempt(job.here, lambda: _begin(job, stack))
        done = attempt(job.here, lambda: _left_out(job, done_parts(job.store, job.kind)))
        left = [part for part in range(job.parts) if part not in done]
        if done and job.here.is_main:
            log.info("%s of %d are done already", counted(len(done), "part"), job.parts)
        own = left[job.here.rank :: job.here.size]
        if own:
            _compute(job, own, len(left), _LeftOut(job, done))
        from_all(job.here, None)  # a rank that fails ends its process, and torchrun the others
        return attempt(job.here, lambda: _complete(job))


def _begin(job: Job, stack: ExitStack) -> None:
    """Take the output, on rank 0: a new one, or one of the same features, which no other process writes to."""
    if not job.here.is_main:
        return
    folder = job.store.local  # two that write to one URL write the same files
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(locked(folder / _LOCK, this_process()))
        except Held as other:
            raise EmbeddingError(f"--out {folder} is being written by {other}; wait for it") from None
        sweep(folder)
    identity, found = job.identity(), read_about(job.store)
    if found is None:
        names = [name for name in job.store.names() if name != _LOCK]
        if names:
            raise EmbeddingError(f"--out {job.store.url} holds other files ({names[0]}); name an empty folder")
    if found is None or not done_parts(job.store, found.get("format", job.kind)):  # nothing that could be lost
        write_about(job.store, identity | job.about | {"complete": False})
        return
    if _has_grown(job, found):
        _keep_whole_parts(job, found["images"], identity)
        return
    others = [
        f"{name} was {str(found.get(name))[:12]}, now {str(value)[:12]}"  # of a hash the first digits
        for name, value in identity.items()
        if found.get(name) != value
    ]
    if others:
        raise EmbeddingError(f"--out {job.store.url} holds other features: {'; '.join(others)}; name another folder")
    left_out = _left_out(job, done_parts(job.store, job.kind))
    if too_many_bad(sum(left_out.values()), len(job.shard_set)):  # the set may have been repaired since
        for part in (part for part, count in left_out.items() if count):
            job.store.remove(f"{stem(part)}.json")


def _has_grown(job: Job, found: dict[str, Any]) -> bool:
    """Whether the output's features are those of the set before images were appended to it, whose ids stay."""
    differing = {name for name, value in job.identity().items() if found.get(name) != value}
    grows = "set" in differing and differing <= {"set", "images", "parts"}
    return grows and job.shard_set.manifest.before(str(found["set"])) is not None


def _keep_whole_parts(job: Job, images: int, identity: dict[str, Any]) -> None:
    """Make the output, whose features are those of the set's first `images` images, one of the whole set."""
    kept = images // job.part_size
    if images % job.part_size and kept in done_parts(job.store, job.kind):
        # first: with the new embedding.json it would pass for a part that is done
        job.store.remove(f"{stem(kept)}.json")
    write_about(job.store, identity | job.about | {"complete": False})
    log.info(
        "%s has grown from %s to %s since: features of the others are added",
        *(job.shard_set.path, f"{images:,}", counted(len(job.shard_set), "image")),
    )


def _left_out(job: Job, parts: set[int]) -> dict[int, int]:
    """Number of images that parts leave out."""
    return {part: len(record_of(job.store, part)["left_out"]) for part in parts}


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
            self._others |= _left_out(self._job, new)


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
