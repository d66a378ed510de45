"""Packing the images of a Python iterable: read here one after the other, encoded by a pool, written here in order."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from shards.errors import PackError
from shards.format.layout import MAX_SHARDS, SCHEMA
from shards.format.manifest import NUMBERED, Manifest, Quarantined, ShardRecord
from shards.format.writer import ShardWriter, is_whole, read_record
from shards.images.encode import Encoded, Rejected, encode
from shards.images.options import EncodeOptions
from shards.packing import output
from shards.packing.options import PackOptions
from shards.packing.plan import Plan
from shards.packing.progress import Display
from shards.packing.sources.items import Content, Items, Pixels
from shards.pool import cores, process_map
from shards.storage.base import Store
from shards.words import display

_FEW = 256  # images that one process has encoded before a pool has started


class Packed(NamedTuple):
    """What a packing of an iterable has made.

    Attributes:
        plan: The plan that describes it, once all is read.
        records: Those of the shards.
    """

    plan: Plan
    records: list[ShardRecord]


def plan_options(items: Items, options: PackOptions) -> dict[str, object]:
    """The options that affect the bytes of the set."""
    return {**options.deciding(), "shuffle": items.shuffled}


def pack_into(
    items: Items,
    options: PackOptions,
    store: Store,
    files: dict[str, int],
    shown: Display,
    check: Callable[[], None],
) -> Packed:
    """Pack the items into a store that is locked; shards that it holds of the same items are kept.

    Args:
        items: The images.
        options: How they are packed.
        store: The output.
        files: The files of a shard set in it, with their sizes.
        shown: The display.
        check: Raises PackError if another packer has taken over the store.

    Raises:
        PackError: An item is no image, or the store holds other images.
        OSError: The store cannot be written.
    """
    try:
        # Images that can be read only once cannot be compared first.
        if options.overwrite and files and not items.repeatable:
            raise _OtherSet("holds a set")
        _refuse_options(items, options, store)
        return _Packing(items, options, store, shown, check).run()
    except _OtherSet as other:
        if not options.overwrite:
            raise PackError(f"{display(store.url)} {other}; use overwrite=True to replace it, or another out") from None
        shown.note(f"{display(store.url)} {other}")
    output.replace(store, files, shown.note)
    return _Packing(items, options, store, shown, check).run()


class _OtherSet(Exception):
    """The output holds another set; the message says how it differs."""


def _refuse_options(items: Items, options: PackOptions, store: Store) -> None:
    """Raise _OtherSet if the output was packed with other options, or from files."""
    state = output.read_state(store)
    if state is None:
        return
    if isinstance(state, Manifest) and state.keys != NUMBERED:
        raise PackError(f"{display(store.url)} holds indexed tars, which are never replaced; name another out")
    plan = Plan(plan_options(items, options), state.source, (), 0, 0, 0, 0)
    differences = plan.differences(state.options, state.source)
    if differences:
        raise _OtherSet(f"holds another set: {'; '.join(differences)}")


def source_digest(items: Items, options: PackOptions) -> str:
    """Identity of the images and of how they are packed, hex: reads all of them, and packs none."""
    survey = _Survey(items, options)
    for _ in survey:
        pass
    return survey.plan().identity


class _Read(NamedTuple):
    """An item that is to be packed."""

    shard: int
    name: str
    label: int
    size: int


class _Survey:
    """The items while they are read, and what is known of them: the sums and hashes that the plan consists of."""

    def __init__(self, items: Items, options: PackOptions) -> None:
        self._items, self._size, self._limit = items, options.shard_size, options.limit
        self._options = plan_options(items, options)
        self.hashes: list[hashlib._Hash] = []  # of the items of each shard; the last one grows while it is read
        self.images = self.bytes = 0

    def __iter__(self) -> Iterator[tuple[_Read, Content]]:
        for item in self._items:
            shard = self.images // self._size
            if shard == len(self.hashes):
                if shard == MAX_SHARDS:
                    raise PackError(
                        f"--shard-size {self._size} makes more than {MAX_SHARDS:,} shards; use a larger one"
                    )
                self.hashes.append(hashlib.sha256())
            self.hashes[shard].update(item.digest())
            content = item.content
            data = content.data if isinstance(content, Pixels) else content
            size = 0 if isinstance(data, Rejected) else len(data)
            self.images += 1
            self.bytes += size
            yield _Read(shard, item.source, item.label, size), content
            if self.images == self._limit:
                return

    def identity(self, shard: int) -> str:
        """What a shard is packed from, once all of its items are read; the record's `plan`."""
        text = json.dumps([SCHEMA, self._options, self.hashes[shard].hexdigest()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def plan(self) -> Plan:
        """The plan, once all items are read."""
        if not self.images:
            raise PackError("the iterable has no image; one that can be read once may have been read before")
        digest = hashlib.sha256(b"".join(shard.digest() for shard in self.hashes)).hexdigest()
        source = {"images": self.images, "bytes": self.bytes, "hash": digest}
        classes, shards = self._items.classes, len(self.hashes)
        return Plan(self._options, source, classes, self.images, self.bytes, shards, 0)


class _Packing:
    def __init__(
        self, items: Items, options: PackOptions, store: Store, shown: Display, check: Callable[[], None]
    ) -> None:
        self._survey, self._options = _Survey(items, options), options
        self._store, self._shown, self._check = store, shown, check
        self._total = items.count if options.limit is None else min(items.count or options.limit, options.limit)
        self._records: dict[int, ShardRecord] = {}
        state = output.read_state(store)
        self._whole = state if isinstance(state, Manifest) else None
        # shards of what was appended to it since, which are not packed here
        self._later = self._whole.appended[0].first if self._whole and self._whole.appended else MAX_SHARDS
        self._waiting: deque[_Read] = deque()  # the items in the pool, in order

    def run(self) -> Packed:
        self._records = _complete(self._store)
        workers = self._options.workers or (1 if self._total and self._total <= _FEW else cores())
        if self._records:
            self._shown.note(f"comparing the images with {len(self._records):,} shards that are packed already")
        self._shown.begin(self._total)
        output.sweep(self._store)
        try:
            with contextlib.closing(
                process_map(partial(_encoded, self._options.encoding), self._feed(), workers)
            ) as made:
                self._write(made)
        finally:
            self._shown.stop()
            output.sweep(self._store)
        plan = self._survey.plan()
        self._compare(plan.shards - 1)
        if self._whole is None or plan.source != self._whole.source:  # else other shards are of what is appended to it
            if any(shard >= plan.shards for shard in self._records):
                raise _OtherSet(f"holds another set, of more than these {plan.images:,} images")
            if self._later < MAX_SHARDS:
                raise _OtherSet("holds another set, to which others were appended")
        return Packed(plan, [self._records[shard] for shard in range(plan.shards)])

    def _feed(self) -> Iterator[Content]:
        """The contents that are to be encoded, while the items are read."""
        for read, content in self._survey:
            self._compare(read.shard - 1)
            if read.shard == self._later:
                raise _OtherSet("holds another set, of fewer images, to which others were appended")
            if read.shard in self._records:
                self._shown.advance(1, read.size, 0)
                self._shown.tick()
            else:
                self._waiting.append(read)
                yield content

    def _compare(self, shard: int) -> None:
        """Raise PackError if a shard that was there was not packed from the items that were read for it."""
        record = self._records.get(shard)
        if record is not None and record.plan != self._survey.identity(shard):
            raise _OtherSet(f"holds another set: {record.name} is of other images, or of the same in another order")

    def _write(self, made: Iterator[Encoded | str]) -> None:
        """Write the encoded images shard after shard."""
        first = next(made, None)
        while first is not None:
            shard = self._waiting[0].shard
            with ShardWriter(self._store, shard, self._options.names) as writer:
                quarantine: list[Quarantined] = []
                while first is not None and self._waiting[0].shard == shard:
                    read = self._waiting.popleft()
                    if isinstance(first, str):
                        quarantine.append(Quarantined(read.name, first))
                    else:
                        writer.add(first, read.label, read.name)
                    self._shown.advance(1, read.size, int(isinstance(first, str)))
                    self._shown.tick()
                    self._check()
                    first = next(made, None)
                # complete: an item of a later shard was read, or there are no more
                self._records[shard] = writer.commit(self._survey.identity(shard), quarantine)


def _complete(store: Store) -> dict[int, ShardRecord]:
    """Records of the shards whose files are there."""
    sizes, found = store.sizes(), {}
    numbers = [
        int(name.removesuffix(".json")[-6:]) for name in sizes if name.startswith("shard-") and name.endswith(".json")
    ]
    for shard in numbers:
        with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged one is packed again
            record, _ = read_record(store, shard)
            if is_whole(record, sizes):
                found[shard] = record
    return found


def _encoded(options: EncodeOptions, content: Content) -> Encoded | str:
    """The JPEG of an item, or why it is left out."""
    try:
        if isinstance(content, Rejected):
            return str(content)
        return content.encoded(options) if isinstance(content, Pixels) else encode(content, options)
    except Rejected as rejected:
        return str(rejected)
