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

from shards.errors import StreamError, TarReadError
from shards.foreign.forwards import opened
from shards.format.manifest import parse_json
from shards.format.members import ImageFinder, Member, samples_of
from shards.format.tar_reader import DamagedTar, TarReader
from shards.storage.faults import Unavailable
from shards.storage.network import patient
from shards.storage.places import is_url, local
from shards.storage.retry import DELAYS, Retry
from shards.storage.store import open_place, remote
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
    if missing and os.path.isdir(missing[0]):
        raise StreamError(f"{missing[0]} is a folder; write the tars in it as {missing[0]}/{{00000..00099}}.tar")
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


def images(tar: str, *, delays: Sequence[float] | None = None) -> Iterator[TarImage]:
    """The images of a tar in order, read sequentially.

    `shards.format.members` decides which members are images. While a store or a web server is out of reach, this waits.

    Args:
        tar: Path or URL; a compressed one is decompressed.
        delays: Seconds before each retry; None: as long as `FASTMOCO_STORE_WAIT` says.

    Raises:
        TarReadError: The tar does not exist, is not a tar, is damaged or truncated, or was out of reach for too long.
    """
    done, retry = 0, Retry(DELAYS[:2] if delays is None else delays)
    while True:
        try:
            for image in islice(_read(tar, delays), done, None):
                yield image
                done += 1
                retry.succeeded()
            return
        except DamagedTar as error:
            # A local file will not change. Data from a network may have been cut off on the way, unnoticed, if the
            # server did not give their size. A retry drops the images that were yielded.
            if not is_url(tar) or not retry.wait(error, f"{tar}, after its first {done} images"):
                raise _error(tar, done, error) from error
        except OSError as error:
            raise _error(tar, done, error) from error


def give_up(tars: Sequence[str]) -> None:
    """Let reads of tars that wait for a store or a web server fail now."""
    for store in {remote(tar, patient())[0] for tar in tars if is_url(tar)}:
        store.give_up()


def _error(tar: str, done: int, error: OSError | DamagedTar) -> TarReadError:
    cause = getattr(error, "strerror", None) or error.__cause__ or error
    remedy = "repair it, or leave it out"
    if isinstance(error, Unavailable):
        cause = error.after_waiting()
        remedy = "run the same command again once it can be read"
    return TarReadError(f"{tar} cannot be read after its first {done} images: {cause}; {remedy}")


def _read(tar: str, delays: Sequence[float] | None) -> Iterator[TarImage]:
    finder, place = ImageFinder(), 0
    with opened(tar, delays) as file:
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
