"""Comparison of one shard with its record: tar, index, names, `.idx`, `.levels`, and the images themselves."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from shards.damage import Problem, damaged_samples, rows_of_tar, undecodable_deep_samples, undecodable_samples
from shards.foreign.tar_index import idx_of_tar, index_tar
from shards.format.index import idx_bytes, idx_keys, rows_of_index
from shards.format.labels import labels_in
from shards.format.layout import sample_key
from shards.format.levels import no_levels, read_levels
from shards.format.manifest import MANIFEST, ShardRecord, parse_json
from shards.format.writer import extension
from shards.storage.base import Store
from shards.storage.files import sha256
from shards.words import display


@dataclass(frozen=True)
class Shard:
    """One shard, with what a worker process needs to verify it."""

    store: Store
    record: ShardRecord
    numbered: bool
    classes: tuple[str, ...] = field(repr=False)
    check: bool
    decode: bool

    @property
    def tar(self) -> str:
        return f"{self.record.name}.tar"

    def open(self) -> BinaryIO:
        """Open the tar for reading."""
        return self.store.open(self.tar)


def verify_shard(shard: Shard) -> list[Problem]:
    """The problems of one shard."""
    problems = list(_verify_record(shard))
    record = shard.record
    if not record.samples:
        return problems
    keys = _Keys(shard)
    try:
        with shard.open() as file:
            intact = sha256(file) == record.sha256
    except OSError as error:
        lost = f"keys {keys(0)} to {keys(record.samples - 1)}"
        return [*problems, Problem(shard.tar, None, f"cannot read: {error.strerror} ({lost})")]
    rows, found = _verify_rows(shard, keys, intact)
    problems += found
    if not intact:
        with shard.open() as file:
            problems += list(damaged_samples(file, record, shard.numbered, keys, rows)) or [
                Problem(shard.tar, None, "the sha256 differs, but every image matches its checksum")
            ]
    problems += _verify_idx(shard, keys, rows, intact)
    problems += _verify_hash(shard, ".names", record.names_sha256) + _verify_levels(shard)
    if shard.decode and rows is not None:
        # A damaged image cannot be decoded either: each key is reported once.
        named = {problem.key for problem in problems}
        undecodable = _undecodable(shard, keys, rows)
        problems += [problem for problem in undecodable if problem.key is None or problem.key not in named]
    return problems


def _undecodable(shard: Shard, keys: Callable[[int], str], rows: np.ndarray) -> list[Problem]:
    with shard.open() as file:
        if not shard.record.levels_sha256:
            return list(undecodable_samples(file, shard.tar, keys, rows))
        levels = no_levels()
        problems = list(undecodable_deep_samples(file, shard.tar, keys, rows, levels))
    with contextlib.suppress(OSError, ValueError):  # _verify_levels reports it
        if not problems and (levels != read_levels(shard.store, shard.record)).any():
            name = f"{shard.record.name}.levels"
            return [Problem(name, None, "does not count the values of the images in the tar")]
    return problems


class _Keys:
    """Keys of a shard's samples by row: computed, or read from the `.idx` of an indexed tar."""

    def __init__(self, shard: Shard) -> None:
        self._number = int(shard.record.name[-6:]) if shard.numbered else -1
        self._names: list[bytes] = []
        if not shard.numbered:
            with contextlib.suppress(OSError, ValueError):  # _verify_idx reports it
                self._names = idx_keys(shard.store.read(f"{shard.record.name}.idx"))

    def __call__(self, row: int) -> str:
        if self._number >= 0:
            return sample_key(self._number, row)
        return display(self._names[row]) if row < len(self._names) else f"unknown, row {row}"


def _verify_record(shard: Shard) -> Iterator[Problem]:
    name = f"{shard.record.name}.json"
    try:
        own = ShardRecord.from_json(parse_json(shard.store.read(name)))
    except OSError as error:
        yield Problem(name, None, f"cannot read: {error.strerror}")
    except (ValueError, KeyError, TypeError) as error:
        yield Problem(name, None, f"damaged: {type(error).__name__}: {error}")
    else:
        if own != shard.record:
            yield Problem(name, None, f"differs from the shard's record in {MANIFEST}")


def _verify_rows(shard: Shard, keys: Callable[[int], str], intact: bool) -> tuple[np.ndarray | None, list[Problem]]:
    """The rows to check the tar against, and the problems of those on disk."""
    name, record = f"{shard.record.name}.npy", shard.record
    rows = None
    try:
        data = shard.store.read(name)
        if hashlib.sha256(data).hexdigest() == record.index_sha256:
            return rows_of_index(data, name, record.samples, record.bytes), []
        # Without the tar's size as a limit: rows that point beyond it are compared with the right ones below.
        rows = rows_of_index(data, name, record.samples, 2**63)
        problem = Problem(name, None, "differs from what was packed (sha256)")
    except OSError as error:
        problem = Problem(name, None, f"cannot read: {error.strerror}")
    except ValueError as error:
        problem = Problem(name, None, str(error))
    if not intact:
        return rows, [problem]
    try:
        right = _rows_from_tar(shard)  # the hash of the tar matches, so its rows can be rebuilt from it
    except KeyError:
        return rows, [problem, Problem(MANIFEST, None, f"has no class for a label of {shard.tar}")]
    if rows is None or len(right) != len(rows):
        return right, [problem]
    differing = np.flatnonzero(rows != right).tolist()
    named = [
        Problem(name, keys(row), f"row is {rows[row].tolist()}, should be {right[row].tolist()}") for row in differing
    ]
    return right, named or [problem]


def _rows_from_tar(shard: Shard) -> np.ndarray:
    """The rows of an intact tar, rebuilt from the tar itself."""
    with shard.open() as file:
        if shard.numbered:
            return rows_of_tar(file)
        found = index_tar(file, shard.tar, shard.check)
    found.rows["label"] = labels_in(shard.classes, found.names)[found.rows["label"]]
    return found.rows


def _verify_hash(shard: Shard, suffix: str, expected: str) -> list[Problem]:
    name = shard.record.name + suffix
    if not expected:
        return []
    try:
        data = shard.store.read(name)
    except OSError as error:
        return [Problem(name, None, f"cannot read: {error.strerror}")]
    same = hashlib.sha256(data).hexdigest() == expected
    return [] if same else [Problem(name, None, "differs from what was packed (sha256)")]


def _verify_levels(shard: Shard) -> list[Problem]:
    """Whether the counts of a 16-bit shard are those that were packed, and are counts."""
    problems = _verify_hash(shard, ".levels", shard.record.levels_sha256)
    if shard.record.levels_sha256 and not problems:
        name = f"{shard.record.name}.levels"
        try:
            read_levels(shard.store, shard.record)
        except OSError as error:
            return [Problem(name, None, f"cannot read: {error.strerror}")]
        except ValueError as error:
            return [Problem(name, None, str(error).removeprefix(f"{name} is "))]
    return problems


def _verify_idx(shard: Shard, keys: Callable[[int], str], rows: np.ndarray | None, intact: bool) -> list[Problem]:
    name = f"{shard.record.name}.idx"
    try:
        found = shard.store.read(name)
    except OSError as error:
        return [Problem(name, None, f"cannot read: {error.strerror}")]
    if shard.numbered and rows is not None:
        kind = extension(bool(shard.record.levels_sha256))
        expected = idx_bytes(int(shard.record.name[-6:]), rows, kind)
    elif intact and rows is not None:  # names of an indexed tar's members are in the tar only
        with shard.open() as file:
            expected = idx_of_tar(file, rows)
    else:
        return []
    if found == expected:
        return []
    lines, should = found.split(b"\n"), expected.split(b"\n")
    if len(lines) != len(should):
        return [Problem(name, None, f"has {len(lines) - 1} lines, should have {len(should) - 1}")]
    problems = []
    for number, (line, right) in enumerate(zip(lines, should, strict=True)):
        if line != right:
            is_now, was = (text.decode("utf-8", "replace") for text in (line, right))
            cause = f"line {number + 1} is {is_now!r}, should be {was!r}"
            problems.append(Problem(name, keys(number - 1) if number else None, cause))
    return problems
