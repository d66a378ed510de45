"""The plan of a packing: options, source, and the global order cut into shards; kept until the set is complete."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from shards.format.layout import SCHEMA
from shards.format.manifest import Quarantined, parse_json
from shards.storage.base import Store
from shards.storage.places import is_url
from shards.words import display

WORK = "packing.partial"  # folder in the output while a packing is unfinished
STAGED = "staged-"  # how folders in it begin that hold copies of images, or unpacked tars
HEAD = "plan.json"
ORDER = "plan.bin"
OFFSETS = "plan.offsets"
PROBLEMS = "problems.jsonl"
WHOLE, FAULT = -1, -2  # offsets of images that are files of their own, and of those that cannot be read
URL = b"\x1f"  # between the name of a member and its URL
_OFFSET = struct.Struct("<Q")


@dataclass(frozen=True)
class Plan:
    """The head of a plan; the order itself is on disk beside it.

    Attributes:
        options: Options that affect the bytes.
        source: `images`, `bytes` (of those whose size is known) and `hash` of the source.
        classes: Class names by label.
        images: Images to pack, without duplicates, after the limit.
        input_bytes: Total size of their files, as far as it is known.
        shards: Number of shards.
        problems: Number of entries of the source that cannot be packed, including duplicates.
        first: Number of the first shard; above 0 where they are appended to a set.
        base: Digest of the set that they are appended to.
    """

    options: dict[str, Any]
    source: dict[str, Any]
    classes: tuple[str, ...]
    images: int
    input_bytes: int
    shards: int
    problems: int
    first: int = 0
    base: str = ""

    @property
    def numbers(self) -> range:
        """Numbers of the shards."""
        return range(self.first, self.first + self.shards)

    @property
    def identity(self) -> str:
        """Hash of everything that affects the bytes of the set, hex."""
        parts = [SCHEMA, self.options, self.source]
        text = json.dumps([*parts, self.base] if self.base else parts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, options: dict[str, Any], source: dict[str, Any]) -> list[str]:
        """Descriptions of how other options and another source differ from the plan's."""
        found = [
            f"--{name.replace('_', '-')} was {_given(options.get(name))}, now {_given(self.options.get(name))}"
            for name in self.options | options
            if options.get(name) != self.options.get(name)
        ]
        if source != self.source:
            before, now = (f"{s['images']:,} images of {s['bytes']:,} bytes" for s in (source, self.source))
            same = f"same number and size ({now}), other names, labels or columns"
            found.append(f"source: {f'was {before}, now {now}' if before != now else same}")
        return found


def _given(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(repr, value))
    return "not given" if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of the order.

    Attributes:
        path: Path as the source names it; for a member, that of its tar.
        label: Label, or -1.
        member: Name of the image in the tar at `path`; behind `URL` follows its URL. If `path` is the image, the name
            that a table gives it, or empty.
        offset: Offset of the member's data in the tar; -1 if `path` is the image.
        size: Size in bytes, or -1 if unknown.
        place: Where the bytes are, if they are not at `path`: a staged file (see `staging`), a path or URL. Of an image
            that cannot be read, whose offset is `FAULT`, the reason.
    """

    path: bytes
    label: int = -1
    member: bytes = b""
    offset: int = WHOLE
    size: int = -1
    place: bytes = b""

    @property
    def where(self) -> bytes:
        """Path or URL of the file with the bytes."""
        return self.path if self.offset == FAULT else self.place or self.path

    @property
    def is_member(self) -> bool:
        """Whether the image is a part of the file at `path`."""
        return self.offset != WHOLE

    @property
    def source(self) -> str:
        """The image's name in messages."""
        if not self.is_member:
            return display(self.member or self.path)
        return source_name(self.path, self.member.rpartition(URL)[0] if URL in self.member else self.member)

    @property
    def url(self) -> str:
        """Where the image was fetched from; empty if that is not known, or its name."""
        if not self.is_member:
            return display(self.path) if self.member and is_url(os.fsdecode(self.path)) else ""
        return display(self.member.rpartition(URL)[2]) if URL in self.member else ""


def source_name(path: bytes, member: bytes) -> str:
    """A path for messages and reports; for a member, that of its tar and its name: `x.tar/a.jpg`."""
    return f"{display(path)}/{display(member)}" if member else display(path)


def keep_plan(store: Store, folder: Path, plan: Plan) -> None:
    """Move the plan that was made in `folder` into the store, its head last; does nothing if the store has it.

    ORDER holds NUL-terminated fields (label, size, offset, path, member), shard after shard; OFFSETS the offset of each
    shard's block, and of the end, as little-endian uint64.

    Raises:
        OSError: The store cannot be written.
    """
    if read_plan(store) == plan:
        return
    # The head last: a plan with a head counts as complete, and a resumed packing reads the order that belongs to it.
    store.put({f"{WORK}/{name}": folder / name for name in (ORDER, OFFSETS)})
    store.write(f"{WORK}/{HEAD}", (json.dumps(asdict(plan), indent=1) + "\n").encode())


def read_plan(store: Store) -> Plan | None:
    """The store's plan; None if there is none, or it is damaged or of another version.

    Raises:
        OSError: The store cannot be read.
    """
    try:
        values = parse_json(store.read(f"{WORK}/{HEAD}"))
        values["classes"] = tuple(values["classes"])
        values = {"first": 0, "base": "", **values}  # missing in plans of versions that could not append
        plan = Plan(**{field.name: values[field.name] for field in fields(Plan)})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return plan if isinstance(plan.options, dict) and isinstance(plan.source, dict) else None


def read_shard(store: Store, shard: int, folder: str = WORK) -> list[Entry]:
    """Entries of one shard; reads only that shard's block.

    Args:
        store: The output.
        shard: Number of the shard.
        folder: WORK, that of another set, or that of staged images, whose order has their `place` as well.

    Raises:
        OSError: The store cannot be read.
        ValueError: The plan has no such shard.
    """
    # Two small reads: the plan of a billion images has 70 GB, and a worker needs one shard of it.
    width = _OFFSET.size
    places = store.read_range(f"{folder}/{OFFSETS}", shard * width, (shard + 2) * width)
    if len(places) != 2 * width:
        raise ValueError(f"the plan in {store.url} has no shard {shard}")
    start, end = (place for (place,) in _OFFSET.iter_unpack(places))
    parts = store.read_range(f"{folder}/{ORDER}", start, end).split(b"\0")[:-1]
    columns = 6 if folder.startswith(f"{WORK}/{STAGED}") else 5
    rows = zip(*(parts[column::columns] for column in range(columns)), strict=True)
    return [
        Entry(path, int(label), member, int(at), int(size), *place) for label, size, at, path, member, *place in rows
    ]


def read_problems(folder: Path) -> Iterator[Quarantined]:
    """Entries of the source that cannot be packed, from the folder in which the plan was made."""
    with open(folder / PROBLEMS, encoding="utf-8") as lines:
        for line in lines:
            yield Quarantined.from_line(line)


def keep_left_out(store: Store, plan: str, shard: int, reasons: dict[int, str]) -> None:
    """Write why rows of a shard are left out before they are read."""
    store.write(_left_out(plan, shard), json.dumps(dict(sorted(reasons.items()))).encode())


def read_left_out(store: Store, plan: str, shard: int) -> dict[int, str]:
    """Rows of a shard that are left out, in order, with the reasons."""
    try:
        return {int(row): reason for row, reason in parse_json(store.read(_left_out(plan, shard))).items()}
    except FileNotFoundError:
        return {}


def _left_out(plan: str, shard: int) -> str:
    return f"{WORK}/left-out-{plan[:16]}-{shard:06d}.json"
