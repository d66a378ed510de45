"""The images of a map: a sample of written features, their neighbours, and their thumbnails."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastmoco.features.parts import EmbeddingError, about_of, read_rows
from fastmoco.features.search import features_of, most_similar, names_in_words, of_length_one
from fastmoco.flags import ConfigError
from fastmoco.report.neighbours import QUERIES, pick_queries
from fastmoco.report.thumbnails import opened
from fastmoco.runs.progress import progress, tracked
from shards import SampleError, ShardSet
from shards.pool import cores
from shards.words import display

SHEET = 32
"""Thumbnails in a row of a sheet, and rows of a sheet: 1,024 to a JPEG."""
_QUALITY = 78
_TILE = 512  # images whose similarities to all others are in memory at once
_BLANK = (128, 128, 128)


@dataclass(frozen=True)
class Points:
    """The images of a map, n of them, in the order of their ids.

    Attributes:
        unit_ND: float32 [n, D], features of length 1.
        ids: int64 [n].
        names: n names.
        labels: int64 [n], -1 for none.
        chosen: places of the images that were asked for.
        about: the content of embedding.json.
    """

    unit_ND: np.ndarray
    ids: np.ndarray
    names: Sequence[str]
    labels: np.ndarray
    chosen: tuple[int, ...]
    about: dict[str, Any]

    def neighbours(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each image the k others that are most similar: int64 [n, k] places, float32 [n, k] cosines.

        There are fewer than k of a smaller map. Of equal ones those with the smaller ids come first.
        """
        n, k = len(self.ids), min(k, len(self.ids) - 1)
        places, cosines = np.empty((n, k), np.int64), np.empty((n, k), np.float32)
        if k == 0:
            return places, cosines
        with progress("neighbours", n) as bar:
            for start in range(0, n, _TILE):
                cosine_BN = self.unit_ND[start : start + _TILE] @ self.unit_ND.T
                own = np.arange(len(cosine_BN))
                cosine_BN[own, start + own] = -np.inf
                found = np.sort(np.argpartition(-cosine_BN, k - 1, axis=1)[:, :k])
                values = np.take_along_axis(cosine_BN, found, 1)
                order = np.argsort(-values, axis=1, kind="stable")
                places[start : start + _TILE] = np.take_along_axis(found, order, 1)
                cosines[start : start + _TILE] = np.take_along_axis(values, order, 1)
                bar.advance(len(own))
        return places, cosines


def sampled(features: str | Path, most: int, chosen: Sequence[str], k: int) -> Points:
    """At most `most` images of written features, evenly spaced over the set, and some that are chosen by name.

    Args:
        features: folder or URL.
        most: number of images; those of the chosen ones and their neighbours are among them.
        chosen: names of images that have to be there, each with the k images of the whole set most similar to it.
            Without any, the first images of evenly spaced classes are chosen among those that are there.
        k: that number.

    Raises:
        EmbeddingError: the features cannot be read, or there are none.
        ConfigError: a name is not that of an image, or the chosen images and their neighbours are more than `most`.
    """
    about = about_of(features)
    if about["rows"] == 0:
        raise EmbeddingError(f"the features in {features} are those of no image")
    wanted = _chosen_ids(features, chosen, k) if chosen else {}
    needed = set(wanted).union(*wanted.values())
    if len(needed) > most:
        raise ConfigError(f"the chosen images and their neighbours are {len(needed):,}; --points is {most:,}")
    count = min(most, about["rows"])
    even = np.unique(np.linspace(0, about["rows"] - 1, count).round().astype(np.int64))
    parts, at = [], 0
    for _, rows in read_rows(features):
        here = np.isin(rows.ids, list(needed))
        here[even[(even >= at) & (even < at + len(here))] - at] = True
        at += len(here)
        parts.append((rows.features[here], rows.ids[here], [rows.names[row] for row in np.flatnonzero(here).tolist()],
                      rows.labels[here]))  # fmt: skip
    features_ND, ids, labels = (np.concatenate([part[column] for part in parts]) for column in (0, 1, 3))
    names = [name for part in parts for name in part[2]]
    # those that are needed take the places of others
    others = np.flatnonzero(~np.isin(ids, list(needed)))
    spare = len(ids) - count
    drop = others[((np.arange(spare) + 0.5) * len(others) / max(1, spare)).astype(np.int64)]
    keep = np.setdiff1d(np.arange(len(ids)), drop)
    places = {sample: place for place, sample in enumerate(ids[keep].tolist())}
    return Points(
        of_length_one(features_ND[keep]), ids[keep], [names[place] for place in keep], labels[keep],
        tuple(places[sample] for sample in wanted) or tuple(pick_queries(labels[keep], QUERIES).tolist()), about,
    )  # fmt: skip


def _chosen_ids(features: str | Path, names: Sequence[str], k: int) -> dict[int, set[int]]:
    """The id of each name, with those of the k most similar images."""
    found = features_of(features, set(names))
    for name in names:
        if name not in found:
            raise ConfigError(f"{display(name)} is not the name of an image in {names_in_words(features)}")
    queries = np.stack([found[name][1] for name in names])
    matches = most_similar(features, queries, k + 1)
    return {
        found[name][0]: {match.id for match in near if match.id != found[name][0]}
        for name, near in zip(names, matches, strict=True)
    }


def as_it_was(shard_set: ShardSet, digest: str) -> ShardSet:
    """The set when it had a digest, where images were appended since; else the set itself."""
    if shard_set.digest == digest or shard_set.manifest.before(digest) is None:
        return shard_set
    shard_set.close()
    return ShardSet(shard_set.path, digest)


def sheets(shard_set: ShardSet, ids: np.ndarray, side: int) -> tuple[list[bytes], int]:
    """JPEGs with the thumbnails of samples, row by row, SHEET times SHEET to each, and how many could not be read.

    Args:
        shard_set: the set.
        ids: int64 [n].
        side: width and height of a thumbnail in pixels, a multiple of 16, so that none shares a block with another.

    Raises:
        ShardSetError, StoreError: the set cannot be read.
    """
    made, blank = [], 0
    with ThreadPoolExecutor(cores(), "thumbnails") as pool:
        pictures = pool.map(lambda sample: _thumbnail(shard_set, sample, side), ids.tolist())
        waiting = tracked(pictures, "thumbnails", len(ids))
        for start in range(0, len(ids), SHEET * SHEET):
            count = min(SHEET * SHEET, len(ids) - start)
            sheet = Image.new("RGB", (min(count, SHEET) * side, -(-count // SHEET) * side), _BLANK)
            for place in range(count):
                picture = next(waiting)
                if picture is None:
                    blank += 1
                else:
                    sheet.paste(picture, (place % SHEET * side, place // SHEET * side))
            stream = io.BytesIO()
            sheet.save(stream, "JPEG", quality=_QUALITY)
            made.append(stream.getvalue())
    return made, blank


def _thumbnail(shard_set: ShardSet, sample: int, side: int) -> Image.Image | None:
    """The centre square of a sample; None if it cannot be read."""
    try:
        with opened(shard_set, sample) as image:
            image.draft("RGB", (2 * side, 2 * side))  # a JPEG is decoded at a fraction of its size
            width, height = image.size
            edge = min(width, height)
            left, top = (width - edge) / 2, (height - edge) / 2
            box = (left, top, left + edge, top + edge)
            return image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC, box, 2.0)
    except (SampleError, OSError, SyntaxError, ValueError):  # the last three are of a damaged file
        return None
