"""Which shards of a set are complete, and the files that complete the set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import numpy as np

from shards._software import made_by
from shards.errors import PackError
from shards.format.index import rows_of_index
from shards.format.levels import no_levels, read_levels, scaling_of
from shards.format.manifest import MANIFEST, QUARANTINE, Manifest, Quarantined, ShardRecord
from shards.format.scaling import PERCENTILES
from shards.format.writer import is_whole, read_record, shard_files
from shards.packing.plan import Plan
from shards.storage.base import Store
from shards.words import counted, display

S = TypeVar("S")
T = TypeVar("T")
_REQUESTS = 32  # concurrent reads of records from a remote store


def whole(store: Store, plan: Plan) -> dict[int, ShardRecord]:
    """Records of the shards that are complete."""
    sizes = store.sizes()

    def one(shard: int) -> ShardRecord | None:
        try:
            record, _ = read_record(store, shard)
        except (FileNotFoundError, ValueError):
            return None
        return record if record.plan == plan.identity and is_whole(record, sizes) else None

    shards = [shard for shard in plan.numbers if shard_files(shard)[".json"] in sizes]
    return {shard: record for shard, record in zip(shards, each(store, one, shards), strict=True) if record}


def commit(
    store: Store,
    plan: Plan,
    records: list[ShardRecord],
    problems: Iterable[Quarantined] = (),
    percentiles: Sequence[float] | None = None,
) -> tuple[Manifest, list[Quarantined]]:
    """Write quarantine.jsonl, the problems of the source first, and, last, the manifest."""
    left_out = reasons(store, plan, records, problems)
    lines = "".join(entry.line() for entry in left_out)
    store.write(QUARANTINE, lines.encode())
    manifest = Manifest(
        samples=sum(record.samples for record in records),
        bytes=sum(record.bytes for record in records),
        classes=plan.classes,
        quarantined=len(left_out),
        options=plan.options,
        source=plan.source,
        plan=plan.identity,
        made_by={**made_by(), **decoders(records)},
        records=tuple(records),
    )
    if not manifest.samples:
        where = display(f"{store.url}/{QUARANTINE}")
        raise PackError(f"{none_packed(plan, left_out)}; {where} gives all reasons")
    manifest = scaled(store, manifest, percentiles or PERCENTILES)
    store.write(MANIFEST, manifest.to_bytes())
    return manifest, left_out


def none_packed(plan: Plan, left_out: Sequence[Quarantined]) -> str:
    """What is said of a packing that has left out every image."""
    firsts: dict[str, str] = {}  # the first image of each reason, as most often all have the same one
    for each in left_out:
        firsts.setdefault(each.reason, each.source)
    causes = "; ".join(f"{image}: {reason}" for reason, image in list(firsts.items())[:3])
    return f"none of {counted(plan.images, 'image')} could be packed ({causes})"


def scaled(store: Store, manifest: Manifest, percentiles: Sequence[float]) -> Manifest:
    """A manifest with the percentiles of its images, if they have 16 bits.

    Raises:
        PackError: The `.levels` of a shard is damaged.
        OSError: The store cannot be read.
    """
    if manifest.bits == 8:
        return manifest
    try:
        levels = total_levels(store, manifest.records)
    except ValueError as error:
        place = display(f"{store.url}/{error}")
        raise PackError(f"{place}; remove it and run the same command again, which packs its shard again") from None
    low, high = percentiles
    return replace(manifest, scaling=scaling_of(levels, (low, high), manifest.channels))


def total_levels(store: Store, records: Iterable[ShardRecord]) -> np.ndarray:
    """int64[4, 65536]: the sum of the shards' `.levels`.

    Raises:
        ValueError: One is damaged; the message begins with its name.
        OSError: The store cannot be read.
    """

    def read(record: ShardRecord) -> np.ndarray:
        return read_levels(store, record)

    levels = no_levels()
    for found in each(store, read, [record for record in records if record.samples]):
        levels += found
    return levels


def decoders(records: Iterable[ShardRecord]) -> dict[str, str]:
    """Versions of the packages besides Pillow that decoded images, of all shards; of some packages more than one."""
    found: dict[str, list[str]] = {}
    for text in sorted({record.decoders for record in records}):
        for name, _, version in (decoder.partition(" ") for decoder in text.split(", ") if decoder):
            if version not in found.setdefault(name, []):
                found[name].append(version)
    return {name: ", ".join(versions) for name, versions in sorted(found.items())}


def reasons(store: Store, plan: Plan, records: list[ShardRecord], problems: Iterable[Quarantined]) -> list[Quarantined]:
    """What a packing has left out: the problems of the source, then those of each shard."""
    left_out = list(problems)
    # The reasons are in the records' files; memory holds only their number, as a set may have a million shards.
    with_reasons = [shard for shard, record in zip(plan.numbers, records, strict=True) if record.quarantined]
    for _, found in each(store, lambda shard: read_record(store, shard), with_reasons):
        left_out += found
    return left_out


def without_images(store: Store, manifest: Manifest) -> list[str]:
    """Names of the classes that have no image in the set: all were left out, or --limit took none."""
    if not manifest.classes:
        return []

    def labels(record: ShardRecord) -> np.ndarray:
        name = f"{record.name}.npy"
        rows = rows_of_index(store.read(name), name, record.samples, record.bytes, len(manifest.classes))
        return np.unique(rows["label"])

    found = np.zeros(len(manifest.classes) + 1, bool)  # the last is for images without a label, -1
    try:
        for present in each(store, labels, [record for record in manifest.records if record.samples]):
            found[present] = True
            if found[:-1].all():  # soon, as the order is random: a large set is not read again for this
                break
    except ValueError:  # damage to an index of an earlier run; `verify` reports it
        return []
    return [name for name, packed in zip(manifest.classes, found, strict=False) if not packed]


def each(store: Store, one: Callable[[S], T], items: Sequence[S]) -> Iterator[T]:
    """`one` of each item, in order; concurrently for a remote store, where each call is a round trip."""
    if store.local:
        yield from map(one, items)
        return
    with ThreadPoolExecutor(_REQUESTS) as pool:
        yield from pool.map(one, items)
