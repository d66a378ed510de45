"""Images in the rows of files: where their bytes are, so that they can be read one by one in the order of the plan.

A row group of a Parquet file can be read only as a whole, and the order of a packing is random. So each file is read
forwards once, by tasks like those of shards, before any shard is packed. An image whose bytes lie in the file as they
are, as in files of Arrow and in Parquet without compression, is read there. All others are copied, one after the other,
into a file in the output's working folder, which is removed when the set is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from shards.errors import PackError
from shards.packing import executors
from shards.packing.plan import FAULT, OFFSETS, ORDER, STAGED, WORK, Plan
from shards.packing.progress import Display
from shards.packing.running import run_tasks
from shards.packing.sources.embedded import EmbeddedSource, Part
from shards.packing.stage_part import AT_FAULT, IN_SOURCE, StagePart
from shards.storage.base import Store
from shards.storage.files import sweep
from shards.storage.network import Network
from shards.storage.places import is_url
from shards.words import counted, display, human_bytes


def stage(
    source: EmbeddedSource,
    store: Store,
    plan: Plan,
    network: Network,
    run: executors.Run,
    shown: Display,
    check: Callable[[], None],
) -> str:
    """Find or copy the images of a plan; parts that an earlier run has read are kept.

    Returns:
        The folder in the store with the order that says where the images are.

    Raises:
        PackError: A part cannot be read, or the disk has no room for the copies.
        OSError: The store cannot be written.
    """
    folder = f"{WORK}/{STAGED}{plan.identity[:16]}"
    for name in store.names(WORK):
        if name.startswith(STAGED) and f"{WORK}/{name}" != folder:
            store.remove(f"{WORK}/{name}")
    (store.scratch / folder).mkdir(parents=True, exist_ok=True)
    sweep(store.scratch / folder)
    wanted = _wanted(store, source.parts) if plan.images < plan.source["images"] else None
    there = store.sizes(folder)
    tasks = []
    for number, part in enumerate(source.parts):
        rows = None if wanted is None else tuple(sorted(wanted[number]))
        task = StagePart(
            source.root, store.url, number, source.kind, part, source.columns.content, folder, rows, network=network
        )
        if rows != () and Path(task.files[1]).name not in there:
            tasks.append(task)
    if tasks:
        share = plan.images / plan.source["images"]
        _check_room(source, store, share)
        shown.note(f"reading {reading_text(source, share)}")
        shown.begin(sum(t.part.rows if t.wanted is None else len(t.wanted) for t in tasks), what="read")
        try:
            run_tasks(tasks, run, {}, shown, check, "file")
        finally:
            shown.stop()
    _resolve(source, store, folder)
    return folder


def reading_text(source: EmbeddedSource, share: float) -> str:
    """How the images are read, of which `share` are packed."""
    files = counted(len({part.path for part in source.parts}), "file")
    if not source.staged:
        return f"{files}, not compressed: images are read in place"
    copies = human_bytes(source.staged * share)
    return f"{files}, compressed: the output needs {copies} more for copies of the images until the set is complete"


def _check_room(source: EmbeddedSource, store: Store, share: float) -> None:
    if store.local is None:
        return
    need, free = source.staged * share, shutil.disk_usage(store.local).free
    if need > free:
        raise PackError(
            f"{display(store.url)} needs room for copies of the images, {human_bytes(need)}, until the set is complete,"
            f" and for the set itself; {human_bytes(free)} are free; name an --out on a larger disk, or use --limit"
        )


def _entries(store: Store) -> Iterator[tuple[list[bytes], int]]:
    """The fields of all entries of the plan's order, with the number of their shard."""
    places = array("Q", store.read(f"{WORK}/{OFFSETS}"))
    with store.open(f"{WORK}/{ORDER}") as file:
        for shard, (start, end) in enumerate(pairwise(places)):
            fields = file.read(end - start).split(b"\0")
            for at in range(0, len(fields) - 1, 5):
                yield fields[at : at + 5], shard


def _wanted(store: Store, parts: list[Part]) -> list[set[int]]:
    """The rows of each part that the plan packs."""
    find = _Parts(parts)
    wanted: list[set[int]] = [set() for _ in parts]
    for (_, _, row, path, _), _ in _entries(store):
        number, place = find(path, int(row))
        wanted[number].add(place)
    return wanted


class _Parts:
    """Finds the part of a row of a file."""

    def __init__(self, parts: list[Part]) -> None:
        self._numbers: dict[bytes, list[int]] = defaultdict(list)
        for number, part in enumerate(parts):
            self._numbers[part.path].append(number)
        self._firsts = {path: [parts[number].first for number in numbers] for path, numbers in self._numbers.items()}

    def __call__(self, path: bytes, row: int) -> tuple[int, int]:
        """Number of the part, and the row in it."""
        firsts = self._firsts[path]
        place = int(np.searchsorted(firsts, row, "right")) - 1 if len(firsts) > 1 else 0
        return self._numbers[path][place], row - firsts[place]


def _resolve(source: EmbeddedSource, store: Store, folder: str) -> None:
    """Write the plan's order with the places of the images."""
    find = _Parts(source.parts)
    out = store.url if is_url(store.url) else os.path.abspath(store.url)
    known: dict[int, tuple[np.ndarray, list[str], bytes]] = {}
    offsets, shards = array("Q", (0,)), 0
    paths = {name: store.partial(f"{folder}/{name}") for name in (ORDER, OFFSETS)}
    with open(paths[ORDER], "wb") as file:
        for (label, _, row, path, member), shard in _entries(store):
            if shard > shards:
                offsets.append(file.tell())
                shards = shard
            number, at = find(path, int(row))
            if number not in known:
                stem = f"{folder}/{number:06d}"
                known[number] = (*_read_places(store, f"{stem}.places"), os.fsencode(f"{out}/{stem}.images"))
            places, reasons, copies = known[number]
            offset, size, kind = places[at].item()
            place = b"" if kind == IN_SOURCE else copies
            if kind == AT_FAULT:
                offset, size, place = FAULT, -1, reasons[offset].replace("\0", " ").encode()
            file.write(b"%s\0%d\0%d\0%s\0%s\0%s\0" % (label, size, offset, path, member, place))
        offsets.append(file.tell())
    paths[OFFSETS].write_bytes(struct.pack(f"<{len(offsets)}Q", *offsets))
    store.put({f"{folder}/{name}": path for name, path in paths.items()})


def _read_places(store: Store, name: str) -> tuple[np.ndarray, list[str]]:
    with store.open(name) as file:
        return np.load(file), json.loads(file.read())
