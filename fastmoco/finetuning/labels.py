"""Which images are trained on: a share that is drawn by class, or those that a list names.

N: labelled images, C: classes.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmoco.finetuning.settings import LabelSettings
from fastmoco.probes.sets import ProbeError
from pipelines._random import uniforms
from shards import ShardSet
from shards.storage.files import write_whole
from shards.words import counted, display, one_form

log = logging.getLogger(__name__)

_OF_IMAGES, _OF_CLASSES = 16, 17  # streams of the draws; those of the views are 0 to 3
_CHUNK = 65_536  # images whose names are in memory at once
_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Chosen:
    """Images that are trained on.

    Attributes:
        ids: int64[n], sorted.
        missing: names of the list that no labelled image of the set has.
    """

    ids: np.ndarray
    missing: tuple[str, ...] = ()


def choose(shard_set: ShardSet, ids: np.ndarray, settings: LabelSettings, seed: int) -> Chosen:
    """The images to train on, of those with a label (`ids`, int64[N], sorted); writes --write-list.

    Raises:
        ProbeError: a list that cannot be read, names none of them, or names several in one line; a set without names.
    """
    if settings.list is not None:
        chosen = named(shard_set, ids, settings.list)
    elif settings.fraction is not None:
        chosen = Chosen(drawn(ids, shard_set.labels(ids), settings.fraction, seed))
    else:
        chosen = Chosen(ids)
    if settings.write_list is not None:
        _check_names(shard_set, "--write-list")
        lines = "".join(f"{name}\n" for name in shard_set.names(chosen.ids))
        settings.write_list.parent.mkdir(parents=True, exist_ok=True)
        write_whole(settings.write_list, lines.encode())
        log.info("wrote the names of %s to %s", counted(len(chosen.ids), "image"), settings.write_list)
    return chosen


def drawn(ids: np.ndarray, labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """A share of the images, balanced by class: a pure function of its arguments.

    ⌊F · N⌋ images, but one of each class at least. All classes give the same number, some of them one more; a class
    with fewer images gives all it has, and the others the rest. A smaller share of the same seed is a part of a larger
    one. SimCLR's lists are made so: 12,811 and 128,116 of ImageNet's 1,281,167 images (arXiv 2002.05709, section 4.2).

    Args:
        ids: int64[N], sample ids.
        labels: int64[N], 0 or more.
        fraction: F, above 0 and at most 1.
        seed: of the draw.

    Returns:
        int64[n], sorted.
    """
    classes, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    # 1e-9: 0.29 · 100 is 28.999999999999996
    total = max(int(fraction * len(ids) + 1e-9), len(classes))
    level = bisect_right(range(int(counts.max()) + 1), total, key=lambda most: int(np.minimum(counts, most).sum())) - 1
    quotas = np.minimum(counts, level)
    luck = uniforms(classes, seed=seed, epoch=0, stream=_OF_CLASSES, count=1)[:, 0]
    more = [each for each in np.argsort(luck, kind="stable") if counts[each] > level]
    quotas[more[: total - int(quotas.sum())]] += 1
    # within its class, an image's place in the order of its own number
    order = np.lexsort((uniforms(ids, seed=seed, epoch=0, stream=_OF_IMAGES, count=1)[:, 0], place))
    rank = np.empty(len(ids), np.int64)
    rank[order] = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(ids[rank < quotas[place]])


def named(shard_set: ShardSet, ids: np.ndarray, path: Path) -> Chosen:
    """The images that a list names, one a line: file names, or the ends of paths with whole folders.

    Args:
        shard_set: the set.
        ids: int64[N], the samples to look among.
        path: the list, such as SimCLR's 1percent.txt, whose lines are like `n01440764_10026.JPEG`.

    Raises:
        ProbeError: the list cannot be read or names no image of these, a line fits several, or the set has no names.
    """
    _check_names(shard_set, "--list")
    wanted: dict[str, dict[str, int]] = {}  # by file name the lines that end in it, each with the image that it names
    for line in _lines(path):
        wanted.setdefault(line.rpartition("/")[2], {})[line] = -1
    for start in range(0, len(ids), _CHUNK):
        part = ids[start : start + _CHUNK]
        for sample, name in zip(part.tolist(), map(one_form, shard_set.names(part)), strict=True):
            for line, before in wanted.get(name.rpartition("/")[2], {}).items():
                if not f"/{name}".endswith(f"/{line}"):
                    continue
                if before >= 0:
                    other = shard_set.source(before)
                    raise ProbeError(
                        f"--list {path}: {display(line)} fits several images of {shard_set.path}, such as {other} and "
                        f"{name}; write their paths in the list, as --write-list does"
                    )
                wanted[name.rpartition("/")[2]][line] = sample
    lines = {line: sample for group in wanted.values() for line, sample in group.items()}
    missing = tuple(line for line, sample in lines.items() if sample < 0)
    if len(missing) == len(lines):
        raise ProbeError(
            f"--list {path} names no labelled image of {shard_set.path}: its first line is {display(missing[0])}, and "
            f"an image of the set {shard_set.source(int(ids[0]))}"
        )
    if missing:
        some = ", ".join(map(display, missing[:_SHOWN])) + (", …" if len(missing) > _SHOWN else "")
        log.warning(
            "--list %s: %s of %s are no labelled images of %s and are left out: %s",
            *(path, f"{len(missing):,}", counted(len(lines), "name"), shard_set.path, some),
        )
    return Chosen(np.unique(np.array([sample for sample in lines.values() if sample >= 0], np.int64)), missing)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ProbeError(f"--list {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ProbeError(f"--list {path} is no text; give a file with the name of an image in each line") from None
    lines = [one_form(line.strip()).removeprefix("./").strip("/") for line in text.splitlines()]
    found = [line for line in lines if line]
    if not found:
        raise ProbeError(f"--list {path} is empty; give a file with the name of an image in each line")
    return found


def _check_names(shard_set: ShardSet, flag: str) -> None:
    if not all(record.names_sha256 for record in shard_set.manifest.records):
        raise ProbeError(
            f"{flag} needs the names of the images, which {shard_set.path} does not keep; pack it again without "
            "--no-names"
        )
