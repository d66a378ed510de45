"""The images of a run: a packed set, several with weights, or a stream of tars."""

from __future__ import annotations

import hashlib
import os.path
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastmoco.channels import check_images
from fastmoco.config import Config, ConfigError
from fastmoco.ranks.images import Opened
from fastmoco.runs.progress import waiting
from fastmoco.scalings import record_of
from pipelines import TwoViewPipeline, build, build_stream
from pipelines.order.mixture import Mixture
from shards import ShardSet
from shards.foreign.streaming import count, expand
from shards.joined import joined
from shards.words import counted


@dataclass(frozen=True)
class Data:
    """The images of a run.

    Attributes:
        place: path or URL, as the user gave it; of several sets all of them.
        samples: images of an epoch.
        digest: identifies the images; a run is not continued on another digest.
        build: `pipelines.build` or `build_stream` of these images, with the arguments that name the images bound.
        images: different images, of which an epoch of several sets may take more or fewer; 0: as many as `samples`.
        sets: for each of several sets, in words, how many images it has and an epoch takes.
        opened: each set, or the stream, for the agreement of the ranks.
        had: whether the sets had these digests, one for each, before images were appended.
        channels: 1 if all images are known to be grey, else 3.
        scaling: with 16 bits, how the values of each set are scaled, in plain values; else None.
        check: raises ConfigError for --channels 1 where a set has images in colour. Called once it is known that no run
            continues on the images that it began with: those in colour may have been appended.
    """

    place: str
    samples: int
    digest: str
    build: Callable[..., TwoViewPipeline]
    images: int = 0
    sets: tuple[str, ...] = ()
    opened: tuple[Opened, ...] = ()
    had: Callable[[Sequence[str]], bool] = lambda digests: False
    channels: int = 3
    scaling: list[Any] | None = None
    check: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", self.images or self.samples)


def places_of(config: Config) -> list[str | Path]:
    """The sets, or the stream, that a run reads, with those of its probe."""
    of_probe = (config.knn_train, config.knn_val) if config.knn_every else ()
    trained = (config.stream,) if config.stream is not None else config.sets
    return [*trained, *(place for place in of_probe if place is not None)]


@contextmanager
def open_data(config: Config, digests: Sequence[str] | None = None) -> Iterator[Data]:
    """Open the images that `config` names.

    Args:
        config: the settings.
        digests: of each set: without the images that were appended since; None: all of them.

    Raises:
        ShardSetError: a set is missing or incomplete, two are the same, one has 16 bits and another 8, or the tars
            cannot be streamed.
        PipelineError: a weight takes no image of its set.
    """
    if config.stream is not None:
        with waiting(f"searching and counting the images of {config.stream}"):
            data = _stream(config, config.stream)
        yield data
        return
    place = ", ".join(map(str, config.sets))
    with ExitStack() as stack:
        with waiting(f"opening {place}"):
            each_digest = digests or [None] * len(config.sets)
            pairs = zip(config.sets, each_digest, strict=True)
            sets = [stack.enter_context(ShardSet(each, digest)) for each, digest in pairs]
        shards = joined(sets)
        mixture = Mixture.of([len(each) for each in sets], config.weights)
        samples = len(shards) if mixture is None else mixture.samples
        taken = _taken(sets, config.weights) if len(sets) > 1 or mixture else ()
        yield Data(
            place, samples, shards.digest, partial(build, shards), len(shards), taken,
            tuple(map(Opened.of, sets)), partial(_had, sets), shards.channels,
            record_of(*(each.scaling for each in sets)).get("scaling"),
            partial(check_images, config.channels, "--channels 1", *sets),
        )  # fmt: skip


def _had(sets: Sequence[ShardSet], digests: Sequence[str]) -> bool:
    return len(digests) == len(sets) and all(
        each.manifest.before(digest) is not None for each, digest in zip(sets, digests, strict=True)
    )


def _taken(sets: Sequence[ShardSet], weights: Sequence[float]) -> tuple[str, ...]:
    return tuple(
        f"{each.path}: {counted(len(each), 'image')}, × {weight:g} in an epoch"
        for each, weight in zip(sets, weights or [1.0] * len(sets), strict=True)
    )


def check_samples(data: Data, config: Config) -> None:
    """Raise ConfigError if the images are too few for the batch."""
    if data.samples < config.batch_size:
        raise ConfigError(
            f"{data.place} {'give an epoch of' if data.sets else 'has'} {data.samples} samples, fewer than "
            f"--batch-size {config.batch_size}; use a smaller batch"
        )
    if config.mechanism == "memory-bank" and data.images == config.batch_size:
        raise ConfigError(
            f"--batch-size {config.batch_size} is all samples of {data.place}, which leaves the memory bank "
            "no negatives; use a smaller batch"
        )


def _stream(config: Config, pattern: str) -> Data:
    tars = expand(pattern)
    samples = count(tars) if config.images_per_epoch is None else config.images_per_epoch
    # without the common folder, since a collection may be moved
    folder = os.path.dirname(os.path.commonprefix(tars))  # noqa: RUF071 (of characters, which dirname then mends)
    names = [tar.removeprefix(folder) for tar in tars]
    digest = hashlib.sha256("\n".join([str(samples), *names]).encode()).hexdigest()
    build_it = partial(build_stream, tars, images_per_epoch=samples)
    return Data(pattern, samples, digest, build_it, opened=(Opened(pattern, samples, digest),))
