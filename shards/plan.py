"""The plan of a packing: options, source, and the global order cut into shards, on disk until the set is whole."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from shards.errors import PackError
from shards.files import display
from shards.index import MAX_SHARDS, SCHEMA
from shards.options import PackOptions
from shards.sources import Source, labels
from shards.store import Store

WORK = "packing.partial"  # folder in the output that exists while a packing is unfinished


@dataclass(frozen=True)
class Plan:
    """The head of a plan; the order itself lies beside it on disk.

    Attributes:
        options: Options that decide the bytes.
        source: `images`, `bytes` and `hash` (relative paths and sizes) of the source.
        classes: Class names by label.
        images: Images to pack, after the limit.
        input_bytes: Size of their files.
        shards: Number of shards.
    """

    options: dict[str, Any]
    source: dict[str, Any]
    classes: tuple[str, ...]
    images: int
    input_bytes: int
    shards: int

    @property
    def identity(self) -> str:
        """Hash of everything that decides the bytes of the set, hex."""
        text = json.dumps([SCHEMA, self.options, self.source], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, options: dict[str, Any], source: dict[str, Any]) -> list[str]:
        """How other options and another source differ from the plan's, in words."""
        found = [
            f"--{name.replace('_', '-')} was {_given(options.get(name))}, now {_given(value)}"
            for name, value in self.options.items()
            if options.get(name) != value
        ]
        if source != self.source:
            before, now = (f"{s['images']:,} images of {s['bytes']:,} bytes" for s in (source, self.source))
            detail = f"was {before}, now {now}" if before != now else f"same number and size ({now}), other names"
            found.append(f"source: {detail}")
        return found


def _given(value: object) -> str:
    return "not given" if value is None else str(value)


@dataclass(frozen=True)
class Entry:
    """One image of the order: path relative to the source folder, label or -1."""

    path: bytes
    label: int


def make_plan(options: PackOptions, source: Source) -> tuple[Plan, list[Entry]]:
    """Plan and global order of a packing.

    The order sorts by a keyed hash of the path, so it is a pure function of seed and name.

    Raises:
        PackError: The source needs more shards than keys can number.
    """
    seed = options.seed.to_bytes(8, "little")
    state = hashlib.sha256()
    order: list[tuple[bytes, bytes, int, int]] = []
    for file, label in zip(source.files, labels(source), strict=True):
        state.update(b"%s\0%d\0" % (file.path, file.size))
        rank = hashlib.blake2b(file.path, digest_size=8, key=seed).digest()
        order.append((rank, file.path, label, file.size))
    order.sort()
    order = order[: options.limit]
    shards = -(-len(order) // options.shard_size)
    if shards > MAX_SHARDS:
        need = -(-len(order) // MAX_SHARDS)
        raise PackError(f"--shard-size {options.shard_size} gives {shards:,} shards; take at least {need}")
    plan = Plan(
        options=options.deciding(),
        source={
            "images": len(source.files),
            "bytes": sum(file.size for file in source.files),
            "hash": state.hexdigest(),
        },
        classes=tuple(display(name) for name in source.classes()),
        images=len(order),
        input_bytes=sum(size for *_, size in order),
        shards=shards,
    )
    return plan, [Entry(path, label) for _, path, label, _ in order]


def write_plan(store: Store, plan: Plan, order: list[Entry]) -> None:
    """Keep the plan in `store`, plan.json last.

    plan.bin has a block of NUL-ended fields (label, path, label, path, ...) per shard, plan.offsets the blocks' places.
    """
    size = plan.options["shard_size"]
    offsets = np.zeros(plan.shards + 1, dtype="<u8")
    path = store.partial(f"{WORK}/plan.bin")
    with open(path, "wb") as file:
        for shard in range(plan.shards):
            block = b"".join(b"%d\0%s\0" % (e.label, e.path) for e in order[shard * size : (shard + 1) * size])
            file.write(block)
            offsets[shard + 1] = offsets[shard] + len(block)
    store.put(path, f"{WORK}/plan.bin")
    store.write(f"{WORK}/plan.offsets", offsets.tobytes())
    store.write(f"{WORK}/plan.json", (json.dumps(asdict(plan), indent=1) + "\n").encode())


def read_plan(store: Store) -> Plan | None:
    """The plan kept in `store`; None where there is none, or one of another version."""
    try:
        values = json.loads(store.read(f"{WORK}/plan.json"))
        values["classes"] = tuple(values["classes"])
        return Plan(**{field.name: values[field.name] for field in fields(Plan)})
    except (FileNotFoundError, ValueError, KeyError):
        return None


def read_shard(store: Store, shard: int) -> list[Entry]:
    """Entries of one shard; reads that shard's block alone."""
    start, end = np.frombuffer(store.read_range(f"{WORK}/plan.offsets", 8 * shard, 8 * shard + 16), "<u8").tolist()
    parts = store.read_range(f"{WORK}/plan.bin", start, end).split(b"\0")
    return [Entry(path, int(label)) for label, path in zip(parts[0:-1:2], parts[1::2], strict=True)]
