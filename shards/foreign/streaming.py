"""Streaming: images from tars that are read from start to end, without an index.

The webdataset library expands the names. Members are read by `shards.format.members`, as for packing and indexing:
webdataset's own reader accepts a tar that is cut between two members, or at a damaged header, as complete.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from shards.errors import StreamError
from shards.foreign.forwards import opened
from shards.format.manifest import parse_json
from shards.format.members import DamagedTar, ImageFinder, Member, TarReader, samples_of
from shards.storage.places import is_url, local
from shards.storage.retry import DELAYS, FINAL, Retry
from shards.storage.store import open_place
from shards.words import display

log = logging.getLogger(__name__)

_REQUESTS = 32  # concurrent reads of small files
_COUNT_IT = "give the number of images with --images-per-epoch"


class TarImage(NamedTuple):
    """One image of a tar.

    Attributes:
        place: Its index among the tar's images.
        key: Its name in the tar, without the extension.
        data: The image file, unchecked.
    """

    place: int
    key: str
    data: bytes


def expand(pattern: str) -> list[str]:
    """The tars that a pattern names: paths or URLs with braces, as in `s3://bucket/{00000..00099}.tar`, joined by `::`.

    Raises:
        StreamError: The braces do not match, a name occurs twice, or a local file does not exist.
    """
    from webdataset.shardlists import expand_urls  # imports torch if that is installed

    try:
        tars = [local(tar) for tar in expand_urls(pattern)]
    except ValueError as error:
        raise StreamError(f"{pattern}: {error}; write the tars as FOLDER/{{00000..00099}}.tar") from None
    if len(set(tars)) < len(tars):
        twice = next(tar for number, tar in enumerate(tars) if tar in tars[:number])
        raise StreamError(f"{pattern} names {twice} twice; name each tar once")
    missing = [tar for tar in tars if not is_url(tar) and not os.path.isfile(tar)]
    if missing:
        raise StreamError(
            f"{len(missing)} of the {len(tars)} tars of {pattern} do not exist, {missing[0]} is the first; "
            "write the tars as FOLDER/{00000..00099}.tar"
        )
    return tars


def count(tars: list[str]) -> int:
    """Number of images in tars by img2dataset: the `successes` in the `NNNNN_stats.json` beside each `NNNNN.tar`.

    Raises:
        StreamError: A tar has no such file, or the file has no such number.
    """
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return sum(pool.map(_successes, tars))


def _successes(tar: str) -> int:
    place = tar.removesuffix(".tar") + "_stats.json"
    try:
        with open_place(place) as file:
            return int(parse_json(file.read())["successes"])
    except OSError as error:
        raise StreamError(f"the number of images in {tar} is unknown: {place}: {error.strerror}; {_COUNT_IT}") from None
    except (ValueError, KeyError, TypeError):
        raise StreamError(f"{place} has no number of `successes`; {_COUNT_IT}") from None


def images(tar: str, *, delays: Sequence[float] = DELAYS[:2]) -> Iterator[TarImage]:
    """The images of a tar in order, read sequentially. After a broken connection, the tar is read again.

    `shards.format.members` decides which members are images.

    Args:
        tar: Path or URL; `.tar.gz` and `.tgz` are decompressed.
        delays: Seconds before each retry; after an image got through, they count from the first again.

    Raises:
        StreamError: The tar does not exist, is not a tar, is damaged or truncated, or no retry is left.
    """
    # A stream cannot seek, so a retry reads the tar from its start and drops the images that were yielded.
    done, retry = 0, Retry(delays)
    while True:
        try:
            for image in islice(_read(tar), done, None):
                yield image
                done += 1
                retry.succeeded()
            return
        except (OSError, DamagedTar) as error:
            cause = getattr(error, "strerror", None) or error.__cause__ or error
            # A local file will not change; data from a network may have been truncated on the way.
            damaged = isinstance(error, DamagedTar) and not is_url(tar)
            # fsspec reports every failure of a web server as a missing file.
            final = isinstance(error, FINAL) and not tar.startswith("http")
            if damaged or final or not retry.wait(cause, f"{tar}, after its first {done} images"):
                raise StreamError(
                    f"{tar} cannot be read after its first {done} images: {cause}; repair it, or leave it out"
                ) from error


def _read(tar: str) -> Iterator[TarImage]:
    finder, place = ImageFinder(), 0
    with opened(tar) as file:
        reader = TarReader(file)
        for sample in samples_of(reader):
            # an image has to be read while the reader is at it: it cannot seek back
            data: dict[Member, bytes] = {}
            damage: DamagedTar | None = None
            try:
                for m in sample:
                    data[m] = reader.read(m) if m.is_image and not m.fault else b""
            except DamagedTar as error:  # raised below, when the images before the damage have been yielded
                damage = error
            images, left_out = finder.find(data)
            left_out += [(image, image.fault) for image in images if image.fault]
            for image, reason in left_out:
                log.warning("%s/%s is left out: %s", tar, display(image.name), reason)
            for image in images:
                if not image.fault:
                    yield TarImage(place, display(image.key), data[image])
                    place += 1
            if damage is not None:
                raise damage
        if reader.hidden:
            log.warning("%s: left out %s", tar, reader.hidden_text())
