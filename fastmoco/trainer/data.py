"""The images of a run: a packed set, or a stream of tars."""

from __future__ import annotations

import hashlib
import os.path
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from fastmoco.config import Config, ConfigError
from fastmoco.runs.progress import waiting
from pipelines import TwoViewPipeline, build, build_stream
from shards import ShardSet
from shards.foreign.streaming import count, expand


@dataclass(frozen=True)
class Data:
    """The images of a run.

    Attributes:
        place: path or URL, as the user gave it.
        samples: images of an epoch.
        digest: identifies the images; a run is not continued on another digest.
        build: `pipelines.build` or `build_stream` of these images, with the arguments that name the images bound.
    """

    place: str
    samples: int
    digest: str
    build: Callable[..., TwoViewPipeline]


@contextmanager
def open_data(config: Config) -> Iterator[Data]:
    """Open the images that `config` names.

    Raises:
        ShardSetError: the set is missing or incomplete, or the tars cannot be streamed.
    """
    if config.stream is not None:
        with waiting(f"searching and counting the images of {config.stream}"):
            data = _stream(config, config.stream)
        yield data
        return
    with waiting(f"opening {config.shards}"):
        shard_set = ShardSet(config.shards)
    with shard_set:
        yield Data(str(config.shards), len(shard_set), shard_set.digest, partial(build, shard_set))


def check_samples(data: Data, config: Config) -> None:
    """Raise ConfigError if the images are too few for the batch."""
    if data.samples < config.batch_size:
        raise ConfigError(
            f"{data.place} has {data.samples} samples, fewer than --batch-size {config.batch_size}; use a smaller batch"
        )
    if config.mechanism == "memory-bank" and data.samples == config.batch_size:
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
    return Data(pattern, samples, digest, partial(build_stream, tars, images_per_epoch=samples))
