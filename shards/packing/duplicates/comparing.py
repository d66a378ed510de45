"""Comparing the images of a plan before they are packed: scan, decide, and write down what is left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from shards.images.options import EncodeOptions
from shards.packing import executors
from shards.packing.committing import each
from shards.packing.duplicates.deciding import Copies, copies
from shards.packing.duplicates.fingerprint import EXACT, NEAR, UNREADABLE
from shards.packing.duplicates.others import Other, keep_order
from shards.packing.duplicates.scan import Scan, part_name
from shards.packing.options import PackOptions
from shards.packing.plan import WORK, Entry, Plan, keep_left_out, read_shard
from shards.packing.progress import Display
from shards.packing.running import run_tasks
from shards.packing.sources import Source
from shards.storage.base import Store
from shards.words import counted, display

_SHOWN = 3  # copies with other labels that are named at once; quarantine.jsonl names all


@dataclass(frozen=True)
class _Scanned:
    """A set whose images are compared: its name in reasons (empty for the source), order, and numbers."""

    name: str
    order: str
    images: int
    shards: int
    shard_size: int


def compare(
    options: PackOptions,
    store: Store,
    plan: Plan,
    source: Source,
    order: str,
    others: Sequence[Other],
    run: executors.Run,
    shown: Display,
    alive: Callable[[], None],
) -> None:
    """Write down which rows of the plan's shards are left out as copies; does nothing if that is done.

    Raises:
        PackError: Images cannot be read; what was read is kept, and the next call continues.
        OSError: The store cannot be read or written.
    """
    decided = f"{WORK}/compared-{plan.identity[:16]}.json"
    if store.exists(decided):
        return
    own = Scan(
        source.task_root,
        store.url,
        0,
        plan.identity,
        options.encoding,
        order,
        source.kind,
        options.unreachable == "leave-out",
        options.near,
        network=options.network,
    )
    sets = []
    for other in others:
        keep_order(other, store)
        # with no limits of its own: what this packing would leave out may be in the other set
        theirs = {"src": other.source.base.task_root, "order": other.order, "kind": other.source.kind}
        limitless = EncodeOptions(srgb=options.srgb, keep_16_bit=options.keep_16_bit)
        scan = replace(own, encoding=limitless, **theirs)
        sets.append(_scanned(scan, display(other.place), other.plan, store, run, shown, alive))
    sets.append(_scanned(own, "", plan, store, run, shown, alive))
    shown.note("comparing")
    found = _fingerprints(store, plan, sets, options.near)
    _note_unreadable(found, sets[:-1], shown)
    decision = copies(
        found,
        sum(each_set.images for each_set in sets[:-1]),
        options.drop_duplicates is not None,
        options.distance if options.near else None,
        lambda numbers: _entries(store, sets, numbers),
    )
    alive()
    _write(store, plan, sets, decision, shown)
    store.write(decided, json.dumps({"left out": len(decision.image)}).encode())


def _scanned(
    scan: Scan,
    name: str,
    plan: Plan,
    store: Store,
    run: executors.Run,
    shown: Display,
    alive: Callable[[], None],
) -> _Scanned:
    """Scan the shards of one set that are not scanned yet."""
    size = plan.options["shard_size"]
    there = set(store.names(scan.file.rpartition("/")[0]))
    tasks = [replace(scan, number=shard) for shard in range(plan.shards)]
    tasks = [task for task in tasks if task.file.rpartition("/")[2] not in there]
    if tasks:
        left = sum(min(size, plan.images - task.number * size) for task in tasks)
        of = f" of {name}" if name else ""
        before = f", {plan.images - left:,} are read already" if left < plan.images else ""
        shown.note(f"reading {counted(plan.images, 'image')}{of} to compare them{before}")
        shown.begin(plan.images, plan.images - left, "read")
        try:
            run_tasks(tasks, run, {}, shown, alive)
        finally:
            shown.stop()
    return _Scanned(name, scan.order, plan.images, plan.shards, size)


def _fingerprints(store: Store, plan: Plan, sets: Sequence[_Scanned], near: bool) -> np.ndarray:
    """EXACT[N] or NEAR[N] of all images, set after set."""
    found = np.empty(sum(each_set.images for each_set in sets), NEAR if near else EXACT)
    names = [part_name(plan.identity, one.order, shard) for one in sets for shard in range(one.shards)]
    start = 0
    for data in each(store, store.read, names):
        part = np.frombuffer(data, found.dtype)
        found[start : start + len(part)] = part
        start += len(part)
    return found


def _note_unreadable(found: np.ndarray, others: Sequence[_Scanned], shown: Display) -> None:
    """Say how many images of other sets are compared with nothing. Those of the source are left out, with a reason."""
    start = 0
    for other in others:
        states = found["state"][start : start + other.images]
        if unreadable := int((states == UNREADABLE).sum()):
            shown.note(f"warning: {counted(unreadable, 'image')} of {other.name} cannot be read to be compared")
        start += other.images


def _entries(store: Store, sets: Sequence[_Scanned], numbers: np.ndarray) -> dict[int, Entry]:
    """The entries of images by their numbers over all sets; reads each shard once."""
    found: dict[int, Entry] = {}
    first = 0
    for each_set in sets:
        mine = np.unique(numbers[(numbers >= first) & (numbers < first + each_set.images)]) - first
        shards = np.unique(mine // each_set.shard_size).tolist()
        read = each(store, partial(read_shard, store, folder=each_set.order), shards)
        for shard, entries in zip(shards, read, strict=True):
            start = shard * each_set.shard_size
            for row in (mine[(mine >= start) & (mine < start + len(entries))] - start).tolist():
                found[first + start + row] = entries[row]
        first += each_set.images
    return found


def _write(store: Store, plan: Plan, sets: Sequence[_Scanned], decision: Copies, shown: Display) -> None:
    """Write the reasons for each shard, and say how many there are and which copies have other labels."""
    entries = _entries(store, sets, np.concatenate([decision.image, decision.of]))
    ends = np.cumsum([each_set.images for each_set in sets])
    kept = int(ends[-1]) - sets[-1].images
    causes: Counter[str] = Counter()
    labels: list[str] = []
    reasons: dict[int, dict[int, str]] = {}
    for image, of, distance in zip(
        decision.image.tolist(), decision.of.tolist(), decision.distance.tolist(), strict=True
    ):
        copy, stays = entries[image], entries[of]
        where = sets[int(np.searchsorted(ends, of, side="right"))].name
        cause = "in another set" if where else "duplicate" if distance < 0 else "near duplicate"
        name = f"{where}/{stays.source}" if where else stays.source
        same = f"the same content as {name}" if distance < 0 else f"{distance} of 256 bits from {name}"
        reason = f"{cause}: {same}"
        if not where and copy.label != stays.label:
            reason += f", which has label {_label(plan, stays)}, not {_label(plan, copy)}"
            labels.append(f"{copy.source} ({_label(plan, copy)}) and {stays.source} ({_label(plan, stays)})")
        causes[cause] += 1
        shard, row = divmod(image - kept, sets[-1].shard_size)
        reasons.setdefault(shard, {})[row] = reason
    for shard, rows in reasons.items():
        keep_left_out(store, plan.identity, shard, rows)
    shown.note("found " + (", ".join(f"{count:,} {cause}" for cause, count in sorted(causes.items())) or "no copies"))
    if labels:
        more = f"; and {len(labels) - _SHOWN:,} more" if len(labels) > _SHOWN else ""
        shown.note(f"warning: {counted(len(labels), 'copy')} with another label: {'; '.join(labels[:_SHOWN])}{more}")


def _label(plan: Plan, entry: Entry) -> str:
    return plan.classes[entry.label] if entry.label >= 0 else "none"
