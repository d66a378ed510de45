"""WebDataset tars that are read forwards only: made by others, remote, without an index.

Names are expanded and members put together to samples by the webdataset library. The members themselves are read by
`shards.foreign.forwards`: webdataset's reader takes a tar that is cut between two members, or in a damaged header, for
a whole one.
"""

from __future__ import annotations

import json
import logging
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from shards.errors import StreamError
from shards.foreign.forwards import IMAGES, members
from shards.storage.places import is_url
from shards.storage.store import open_place

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

    A sample's image is its first member with an image's extension behind the first dot of its name; where there is
    none, as in `a.b.jpg`, each image is a sample of its own.

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
        except (OSError, tarfile.TarError) as error:
            failed += 1
            cause = getattr(error, "strerror", None) or error.__cause__ or error
            # what a local file holds will not change; what came over a network may have been cut off on its way
            damaged = isinstance(error, tarfile.TarError) and not is_url(tar)
            # of a web server fsspec says that the file is not there, whatever the fault is
            final = isinstance(error, _FINAL) and not tar.startswith("http")
            if failed >= attempts or damaged or final:
                raise StreamError(
                    f"{tar} cannot be read behind its first {given} images: {cause}; mend it, or leave it out"
                ) from error
            log.warning("%s, behind its first %d images: %s; reading it again", tar, given, cause)
        time.sleep(wait * 4 ** (failed - 1))


def _read(tar: str) -> Iterator[TarImage]:
    from webdataset.tariterators import group_by_keys

    files = ({"fname": name, "data": data, "__url__": tar} for name, data in members(tar))
    place = 0
    for sample in group_by_keys(files, handler=_tell(tar)):
        names = [name for name in sample if name.rpartition(".")[2] in IMAGES]
        plain = [name for name in names if name in IMAGES]
        for name in plain[:1] or names:
            stem = name.rpartition(".")[0]
            yield TarImage(place, f"{sample['__key__']}.{stem}" if stem else sample["__key__"], sample[name])
            place += 1


def _tell(tar: str) -> Callable[[Exception], bool]:
    """What webdataset calls with a fault of a single member: it goes on with the next one."""

    def handler(error: Exception) -> bool:
        log.warning("%s: a member is left out: %s", tar, error.args[0])
        return True

    return handler
