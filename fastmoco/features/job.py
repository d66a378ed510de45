"""What is written, and the beginning of it: a new output, or one of the same features, which is continued."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastmoco.features.parts import (
    SCHEMA,
    EmbeddingError,
    cut_parts,
    done_parts,
    read_about,
    record_of,
    stem,
    write_about,
)
from fastmoco.probes.features import Extractor
from fastmoco.ranks.world import World
from fastmoco.results import too_many_bad
from fastmoco.scalings import in_words
from shards import ShardSet
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
            **extractor.of_images(self.shard_set), "precision": extractor.computed_in,
        }  # fmt: skip


def begin(job: Job, stack: ExitStack) -> None:
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
        f"{name} was {_short(found.get(name))}, now {_short(value)}"
        for name, value in identity.items()
        if found.get(name) != value
    ]
    if others:
        raise EmbeddingError(f"--out {job.store.url} holds other features: {'; '.join(others)}; name another folder")
    _forget_cut_parts(job)
    bad = bad_images(job, done_parts(job.store, job.kind))
    if too_many_bad(sum(bad.values()), len(job.shard_set)):  # the set may have been repaired since
        for part in (part for part, count in bad.items() if count):
            job.store.remove(f"{stem(part)}.json")


def _short(value: Any) -> str:
    """A value in a message: of a hash the first digits, of scalings the ranges."""
    return in_words(value) if isinstance(value, list) and isinstance(value[0], dict) else str(value)[:12]


def _has_grown(job: Job, found: dict[str, Any]) -> bool:
    """Whether the output's features are those of the set before images were appended to it, whose ids stay."""
    differing = {name for name, value in job.identity().items() if found.get(name) != value}
    grows = "set" in differing and differing <= {"set", "images", "parts"}
    return grows and job.shard_set.manifest.before(str(found["set"])) is not None


def _keep_whole_parts(job: Job, images: int, identity: dict[str, Any]) -> None:
    """Make the output, whose features are those of the set's first `images` images, one of the whole set."""
    _forget_cut_parts(job)
    kept = images // job.part_size
    if images % job.part_size and kept in done_parts(job.store, job.kind):
        # first: with the new embedding.json it would pass for a part that is done
        job.store.remove(f"{stem(kept)}.json")
    write_about(job.store, identity | job.about | {"complete": False})
    log.info(
        "%s has grown from %s to %s since: features of the others are added",
        *(job.shard_set.path, f"{images:,}", counted(len(job.shard_set), "image")),
    )


def _forget_cut_parts(job: Job) -> None:
    """Let the parts be made again that have lost bytes since they were written, as a disk or a copy may do."""
    for part, what in cut_parts(job.store, job.kind).items():
        log.warning("%s: that part is made again", what)
        job.store.remove(f"{stem(part)}.json")


def bad_images(job: Job, parts: set[int]) -> dict[int, int]:
    """Number of images that parts leave out."""
    return {part: len(record_of(job.store, part)["left_out"]) for part in parts}
