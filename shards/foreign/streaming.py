"""Tars of other programs that are streamed: read from start to end, without an index.

The webdataset library expands the names. Members are read by `shards.format.members`, as for packing and indexing:
webdataset's own reader takes a tar that is cut between two members, or in a damaged header, for a whole one.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from shards.errors import StreamError
from shards.foreign.forwards import opened
from shards.format.members import NOT_REGULAR, DamagedTar, ImageFinder, TarReader, samples_of
from shards.storage.places import is_url
from shards.storage.store import open_place
from shards.words import display

log = logging.getLogger(__name__)

ATTEMPTS = 3
WAIT = 1.0  # seconds before the second attempt; four times as long before each further one
_REQUESTS = 32  # small files that are read at once
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError)
_COUNT_IT = "give the number of images with --images-per-epoch"


class TarImage(NamedTuple):
    """One image of a tar.

    Attributes:
        place: Its number among the tar's images.
        key: Its name in the tar, without the extension.
        data: The file's bytes, unchecked.
    """

    place: int
    key: str
    data: bytes


def expand(pattern: str) -> list[str]:
    """The tars that a pattern names: paths or URLs with braces, as `s3://bucket/{00000..00099}.tar`, joined by `::`.

    Raises:
        StreamError: The braces do not match, a name comes twice, or a local file is not there.
    """
    from webdataset.shardlists import expand_urls  # it imports torch where that is installed

    try:
        tars = expand_urls(pattern)
    except ValueError as error:
        raise StreamError(f"{pattern}: {error}; write the tars as FOLDER/{{00000..00099}}.tar") from None
    if len(set(tars)) < len(tars):
        twice = next(tar for number, tar in enumerate(tars) if tar in tars[:number])
        raise StreamError(f"{pattern} names {twice} twice; give each tar once")
    missing = [tar for tar in tars if not is_url(tar) and not os.path.isfile(tar)]
    if missing:
        raise StreamError(
            f"{len(missing)} of the {len(tars)} tars of {pattern} are no files, {missing[0]} the first; "
            "write the tars as FOLDER/{00000..00099}.tar"
        )
    return tars


def count(tars: list[str]) -> int:
    """Number of images in tars by img2dataset: the `successes` of the `NNNNN_stats.json` beside each `NNNNN.tar`.

    Raises:
        StreamError: There is no such file beside a tar, or it has no such number.
    """
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return sum(pool.map(_successes, tars))


def _successes(tar: str) -> int:
    place = tar.removesuffix(".tar") + "_stats.json"
    try:
        with open_place(place) as file:
            return int(json.load(file)["successes"])
    except OSError as error:
        raise StreamError(f"how many images {tar} holds is not known: {place}: {error.strerror}; {_COUNT_IT}") from None
    except (ValueError, KeyError, TypeError):
        raise StreamError(f"{place} has no number of `successes`; {_COUNT_IT}") from None


def images(tar: str, *, attempts: int = ATTEMPTS, wait: float = WAIT) -> Iterator[TarImage]:
    """The images of a tar, in order, read forwards only; a broken connection is mended by reading again.

    `shards.format.members` says which members are images.

    Args:
        tar: Path or URL; `.tar.gz` and `.tgz` are unpacked.
        attempts: How often in a row the tar is opened without getting an image further.
        wait: Seconds before the second attempt.

    Raises:
        StreamError: The tar is not there, not a tar, damaged or cut off, or all attempts failed.
    """
    given = failed = 0
    while True:
        try:
            for image in islice(_read(tar), given, None):
                yield image
                given, failed = given + 1, 0
            return
        except (OSError, DamagedTar) as error:
            failed += 1
            cause = getattr(error, "strerror", None) or error.__cause__ or error
            # what a local file holds will not change; what came over a network may have been cut off on its way
            damaged = isinstance(error, DamagedTar) and not is_url(tar)
            # of a web server fsspec says that the file is not there, whatever the fault is
            final = isinstance(error, _FINAL) and not tar.startswith("http")
            if failed >= attempts or damaged or final:
                raise StreamError(
                    f"{tar} cannot be read behind its first {given} images: {cause}; mend it, or leave it out"
                ) from error
            log.warning("%s, behind its first %d images: %s; reading it again", tar, given, cause)
        time.sleep(wait * 4 ** (failed - 1))


def _read(tar: str) -> Iterator[TarImage]:
    finder, place = ImageFinder(), 0
    with opened(tar) as file:
        reader = TarReader(file)
        for sample in samples_of(reader):
            # each image is read while the reader is at it, for it cannot go back
            data = {m: reader.read(m) if m.is_image and m.regular else b"" for m in sample}
            images, left_out = finder.find(data)
            left_out += [(image, NOT_REGULAR) for image in images if not image.regular]
            for image, reason in left_out:
                log.warning("%s: %s is left out: %s", tar, display(image.name), reason)
            for image in images:
                if image.regular:
                    yield TarImage(place, display(image.key), data[image])
                    place += 1
