"""Comparison of a set with its own records: which files and samples differ from what was packed or indexed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from shards._verify_shard import Shard, verify_shard
from shards.damage import Problem
from shards.errors import PackError
from shards.format.manifest import MANIFEST, NUMBERED, QUARANTINE, Manifest, Quarantined
from shards.images import deep
from shards.packing.committing import scaled
from shards.pool import process_map
from shards.reader import ShardSet
from shards.storage.base import Store
from shards.words import counted


def verify(shard_set: ShardSet, workers: int, decode: bool = False) -> Iterator[list[Problem]]:
    """Compare every file of a set with its records; yields the problems of the whole set, then those of each shard.

    Args:
        shard_set: The set.
        workers: Number of threads (hashing releases the GIL), or of processes if images are decoded.
        decode: Decode every image as well, as packing does.

    Raises:
        PackError: The images have 16 bits, and what decodes them is not installed.
    """
    if decode and shard_set.bits == 16:
        deep.require("--decode of 16-bit images")
    store, manifest = shard_set.store, shard_set.manifest
    yield _verify_manifest(store, manifest) + _verify_scaling(store, manifest) + _verify_quarantine(store, manifest)
    numbered, check = manifest.keys == NUMBERED, bool(manifest.options.get("check", True))
    classes = () if numbered else manifest.classes
    shards = (Shard(store, record, numbered, classes, check, decode) for record in manifest.records)
    if decode:
        yield from process_map(verify_shard, shards, min(workers, len(manifest.records)))
    else:
        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(verify_shard, shards)


def _verify_manifest(store: Store, manifest: Manifest) -> list[Problem]:
    problems = []
    for name in ("samples", "bytes"):
        stated, found = getattr(manifest, name), sum(getattr(record, name) for record in manifest.records)
        if stated != found:
            problems.append(Problem(MANIFEST, None, f"{name} is {stated}, but the shards add up to {found}"))
    known = {f"{record.name}.tar" for record in manifest.records}
    unknown = [name for name in store.names() if name.endswith(".tar") and name not in known]
    return problems + [Problem(name, None, f"not in {MANIFEST}") for name in unknown]


def _verify_scaling(store: Store, manifest: Manifest) -> list[Problem]:
    """Whether the percentiles are those of the shards' values; damaged files are problems of their shards."""
    if manifest.scaling is None:
        return []
    try:
        right = scaled(store, manifest, manifest.scaling.percentiles).scaling
    except (OSError, PackError):
        return []
    if right == manifest.scaling:
        return []
    return [Problem(MANIFEST, None, f"scaling is {manifest.scaling.to_json()}, but the shards' values give {right}")]


def _verify_quarantine(store: Store, manifest: Manifest) -> list[Problem]:
    """The first difference of quarantine.jsonl, which has no checksum, from the manifest's count."""
    lines = 0
    try:
        with store.open(QUARANTINE) as file:
            for line in file:
                lines += 1
                Quarantined.from_line(line)
    except OSError as error:
        cause = f"cannot read: {error.strerror}"
    except ValueError as error:
        cause = f"line {lines} is damaged: {error}"
    else:
        if lines == manifest.quarantined:
            return []
        cause = f"has {counted(lines, 'line')}, should have {manifest.quarantined:,}"
    return [Problem(QUARANTINE, None, cause)]
