"""Appending to a set: new images go into new shards behind those that it has, which keep their bytes and ids."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from shards._software import made_by
from shards.errors import PackError, ShardSetError
from shards.format.layout import MAX_SHARDS, SHARD_FILE
from shards.format.manifest import MANIFEST, NUMBERED, QUARANTINE, Appended, Manifest, Quarantined, ShardRecord
from shards.format.parsing import parse_manifest
from shards.format.writer import shard_files
from shards.packing.committing import decoders, none_packed, reasons, scaled
from shards.packing.plan import HEAD, WORK, Plan, read_plan
from shards.storage.base import Store
from shards.words import counted, display

_OF_IMAGES = ("resize", "quality", "max_side", "max_pixels", "check", "srgb", "keep_16_bit")
"""Options that have to be those of the set, so that all of its images were treated alike."""


def appendable(store: Store) -> Manifest:
    """The manifest of the complete set in an output.

    Raises:
        PackError: There is none, or it was made of tars by indexing.
        OSError: The store cannot be read.
    """
    name = display(store.url)
    plan = read_plan(store)
    if plan is not None and not plan.base:
        raise PackError(f"{name} is not complete; run the command that packed it again, then append to it")
    manifest = _manifest(store)
    if manifest is None:
        raise PackError(f"{name} is no shard set to append to; pack the images without --append, which makes one")
    if manifest.keys != NUMBERED:
        raise PackError(f"{name} holds indexed tars; put the new tars beside them and index it again with --overwrite")
    return manifest


def appended_to(store: Store) -> Manifest | None:
    """The manifest of a set that images were appended to since it was packed first."""
    try:
        manifest = _manifest(store)
    except PackError:  # damaged: it is written again, unless there are shards of more than the first packing
        return None
    return manifest if manifest is not None and manifest.appended else None


def _manifest(store: Store) -> Manifest | None:
    try:
        return parse_manifest(store.read(MANIFEST), f"{store.url}/{MANIFEST}")
    except FileNotFoundError:
        return None
    except ShardSetError as error:
        raise PackError(str(error)) from None


def placed(store: Store, plan: Plan, whole_set: Manifest) -> Plan:
    """A plan with the place of its shards: behind those of the set, or where it has been appended already.

    Raises:
        PackError: The set has the images, was packed with other options, or another packing is being appended to it.
        OSError: The store cannot be read.
    """
    name = display(store.url)
    if plan.source == whole_set.source:
        raise PackError(f"{name} was packed from these images, so there is nothing to append")
    for part in whole_set.appended:
        if part.source == plan.source:
            differences = plan.differences(part.options, part.source)
            if differences:
                raise PackError(f"{name} holds these images already, appended otherwise: {'; '.join(differences)}")
            return replace(plan, first=part.first, base=part.base)
    options = {key: plan.options.get(key) for key in _OF_IMAGES}
    differences = replace(plan, options=options).differences(
        {key: whole_set.options.get(key) for key in _OF_IMAGES}, plan.source
    )
    if differences:
        raise PackError(f"{name} was packed in another way: {'; '.join(differences)}; give the flags that it has")
    plan = replace(plan, first=len(whole_set.records), base=whole_set.digest)
    if plan.first + plan.shards > MAX_SHARDS:
        raise PackError(f"{name} would have {plan.first + plan.shards:,} shards; it may have {MAX_SHARDS:,}")
    begun = read_plan(store)
    if begun is not None and begun.base == plan.base:
        differences = plan.differences(begun.options, begun.source)
        if differences:
            raise PackError(
                f"other images are being appended to {name} ({'; '.join(differences)}); run that command again, which "
                f"finishes it, or give it up by removing {display(f'{store.url}/packing.partial')}"
            )
    return plan


def clear(store: Store, plan: Plan, whole_set: Manifest) -> None:
    """Remove shards behind those of the set that another packing has left, which was given up."""
    begun = read_plan(store)
    if plan.first < len(whole_set.records) or (begun is not None and begun.identity == plan.identity):
        return
    for file in store.names():
        if SHARD_FILE.fullmatch(file) and int(file[6:12]) >= plan.first:
            store.remove(file)


def commit(
    whole_set: Manifest,
    store: Store,
    plan: Plan,
    records: list[ShardRecord],
    problems: Iterable[Quarantined],
    percentiles: Sequence[float] | None = None,
) -> tuple[Manifest, list[Quarantined]]:
    """Complete a set that has more shards than those of a plan: add them, or put repaired ones in their place.

    Returns:
        The manifest of the whole set, and what the plan's images were left out for.

    Raises:
        PackError: No image could be packed, or the set's quarantine.jsonl is damaged.
        OSError: The store cannot be written.
    """
    left_out = reasons(store, plan, records, problems)
    manifest = whole_set
    if plan.first == len(whole_set.records):
        if not any(record.samples for record in records):
            _give_up(store, plan)
            raise PackError(none_packed(plan, left_out))
        lines = _lines(store, whole_set.quarantined) + b"".join(each.line().encode() for each in left_out)
        if left_out:
            store.write(QUARANTINE, lines)
        part = Appended(
            plan.first,
            plan.shards,
            plan.base,
            plan.identity,
            plan.options,
            plan.source,
            {**made_by(), **decoders(records)},
            whole_set.scaling,
        )
        manifest = replace(
            whole_set, classes=plan.classes, quarantined=whole_set.quarantined + len(left_out),
            appended=(*whole_set.appended, part),
        )  # fmt: skip
    else:
        _mend(store, whole_set.quarantined, left_out)
    every = (*whole_set.records[: plan.first], *records, *whole_set.records[plan.first + len(records) :])
    samples, size = sum(record.samples for record in every), sum(record.bytes for record in every)
    manifest = replace(manifest, records=every, samples=samples, bytes=size)
    if whole_set.scaling is not None:
        manifest = scaled(store, manifest, percentiles or whole_set.scaling.percentiles)
    if manifest != whole_set:
        store.write(MANIFEST, manifest.to_bytes())
    return manifest, left_out


def _give_up(store: Store, plan: Plan) -> None:
    """Forget a packing that has no image: continued, it would fail again, and others could not be appended before."""
    for name in (*(shard_files(shard)[".json"] for shard in plan.numbers), f"{WORK}/{HEAD}"):
        with contextlib.suppress(FileNotFoundError):
            store.remove(name)


def _lines(store: Store, count: int) -> bytes:
    """The lines of quarantine.jsonl that the manifest counts: a packing that was killed may have added some already."""
    try:
        lines = store.read(QUARANTINE).splitlines(keepends=True)
    except FileNotFoundError:
        lines = []
    if len(lines) < count:
        raise PackError(
            f"{display(f'{store.url}/{QUARANTINE}')} has {counted(len(lines), 'line')}, and should have {count:,}; run "
            "the command that packed the set again, and those that appended to it, which repair it, then append to it"
        )
    return b"".join(lines[:count])


def _mend(store: Store, count: int, left_out: Sequence[Quarantined]) -> None:
    """Put lines of a plan's images back into quarantine.jsonl, if it has not all `count` lines of the set."""
    try:
        lines = store.read(QUARANTINE).splitlines()[:count]
    except FileNotFoundError:
        lines = []
    kept: list[str] = []
    for line in lines:
        with contextlib.suppress(ValueError):  # damaged: the command that packed its image puts it back
            kept.append(Quarantined.from_line(line).line())
    if len(kept) == count:
        return
    there = Counter(kept)
    for line in (each.line() for each in left_out):
        if there[line]:
            there[line] -= 1
        elif len(kept) < count:
            kept.append(line)
    store.write(QUARANTINE, "".join(kept).encode())


def part_of(manifest: Manifest, plan: Plan) -> Manifest:
    """The manifest of a plan's shards alone, for messages."""
    records = manifest.records[plan.first : plan.first + plan.shards]
    samples, size = sum(record.samples for record in records), sum(record.bytes for record in records)
    return replace(manifest, records=records, samples=samples, bytes=size)


def in_words(manifest: Manifest, plan: Plan) -> str:
    """Where a plan's images are in the set."""
    first = sum(record.samples for record in manifest.records[: plan.first])
    last = first + part_of(manifest, plan).samples - 1
    return (
        f"appended to {counted(first, 'image')}, as the ids {first:,} to {last:,}; the set has "
        f"{counted(manifest.samples, 'image')} in {counted(len(manifest.records), 'shard')}"
    )
