"""What a packed set says about itself: a record for each shard, a manifest for the set."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from operator import itemgetter
from pathlib import Path
from typing import Any

from shards.errors import ShardSetError
from shards.format.layout import SCHEMA

MANIFEST = "manifest.json"
NUMBERED, IN_IDX = "numbered", "idx"  # Manifest.keys


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One whole shard.

    Attributes:
        name: Stem of its files, `shard-000012`; the tar's own where others made it.
        samples: Images in it; 0 means that every image was left out and there are no files but the record (and
            the tar, where others made it).
        bytes: Size of the tar.
        sha256: Of the tar, hex.
        index_sha256: Of the `.npy` file, hex.
        quarantined: Images left out.
        plan: Identity of the plan that it was packed by.
    """

    name: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str
    quarantined: int
    plan: str

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ShardRecord:
        """Record from decoded JSON; KeyError or TypeError where a field is missing or of a wrong type."""
        record = cls(*_FIELDS(values))  # a hundred thousand of them are made before a training starts
        for name in ("samples", "bytes", "quarantined"):
            if not isinstance(values[name], int) or values[name] < 0:
                raise TypeError(f"{name} is {values[name]!r}")
        if not (type(record.name) is type(record.sha256) is type(record.index_sha256) is type(record.plan) is str):
            raise TypeError(f"a field of the record {record.name!r} is no text")
        return record


_FIELDS = itemgetter(*(field.name for field in fields(ShardRecord)))


@dataclass(frozen=True)
class Quarantined:
    """An image left out: where it came from (relative to the source folder) and why."""

    source: str
    reason: str

    def line(self) -> str:
        """The line of quarantine.jsonl."""
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Manifest:
    """A whole shard set.

    Attributes:
        samples: Images in the set.
        bytes: Size of all tars.
        classes: Class names by label; empty where there are no labels.
        quarantined: Images left out; quarantine.jsonl names them.
        options: Options that decide the bytes: those of PackOptions.deciding, or `check` for tars made by others.
        source: The source: images (or tars, where others made them), bytes, and hash of its names and sizes.
        plan: Identity of source and options together.
        made_by: Versions of the software that packed it.
        records: The shards in order.
        keys: `numbered`, where the set was packed here and a key is made of the shard's number and the row's; or
            `idx`, where others made the tars and the keys are those of the names in the `.idx` files.
    """

    samples: int
    bytes: int
    classes: tuple[str, ...]
    quarantined: int
    options: dict[str, Any]
    source: dict[str, Any]
    plan: str
    made_by: dict[str, str]
    records: tuple[ShardRecord, ...]
    keys: str = NUMBERED

    @property
    def digest(self) -> str:
        """Identity of the packed bytes, hex; equal sets have equal digests wherever they were packed."""
        state = hashlib.sha256(SCHEMA.encode())
        for record in self.records:
            state.update(f"\n{record.name} {record.samples} {record.sha256} {record.index_sha256}".encode())
        return state.hexdigest()

    def to_bytes(self) -> bytes:
        """JSON text with a line for each record."""
        values = {"schema": SCHEMA, **{f.name: getattr(self, f.name) for f in fields(self)}}
        values["classes"] = list(self.classes)
        del values["records"]
        head = json.dumps(values, indent=2, ensure_ascii=False)[:-2]
        records = ",\n".join("    " + json.dumps(asdict(record)) for record in self.records)
        return f'{head},\n  "records": [\n{records}\n  ]\n}}\n'.encode()


def parse_json(data: bytes) -> Any:
    """Decoded JSON; ValueError, whatever is wrong with it."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def read_manifest(path: Path) -> Manifest:
    """Manifest at `path`.

    Raises:
        OSError: The file cannot be read.
        ShardSetError: It is not a manifest, or one of another schema.
    """
    return parse_manifest(path.read_bytes(), str(path))


def parse_manifest(data: bytes, place: str) -> Manifest:
    """Manifest of a file's bytes.

    Args:
        data: The file.
        place: Where it lies, for the errors.

    Raises:
        ShardSetError: It is not a manifest, or one of another schema.
    """
    try:
        with _without_collection():
            values = parse_json(data)
            schema = values["schema"]
            if schema == SCHEMA:
                return _manifest(values)
    except (ValueError, KeyError, TypeError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise ShardSetError(
            f"{place} is damaged ({cause}); run fastmoco-shard again with the same --src and --out"
        ) from None
    raise ShardSetError(f"{place} has schema {schema!r}; this version reads {SCHEMA!r}")


def _manifest(values: dict[str, Any]) -> Manifest:
    """Manifest of decoded JSON; ValueError, KeyError or TypeError where it is none."""
    values.setdefault("keys", NUMBERED)
    if values["keys"] not in (NUMBERED, IN_IDX):
        raise ValueError(f"keys is {values['keys']!r}")
    for name, kind in _TYPES.items():
        if not isinstance(values[name], kind):
            raise TypeError(f"{name} is {str(values[name])[:40]!r}")
    records = tuple(ShardRecord.from_json(record) for record in values["records"])
    if values["keys"] == NUMBERED and not all(record.name[-6:].isdigit() for record in records):
        raise ValueError("a record's name does not end in a shard's number")
    if not all(isinstance(name, str) for name in values["classes"]):
        raise TypeError("a class name is no text")
    return Manifest(records=records, classes=tuple(values["classes"]), **{name: values[name] for name in _PLAIN})


_TYPES = {
    **dict.fromkeys(("samples", "bytes", "quarantined"), int),
    **dict.fromkeys(("options", "source", "made_by"), dict),
    **dict.fromkeys(("classes", "records"), list),
    "plan": str,
}
_PLAIN = {field.name for field in fields(Manifest)} - {"records", "classes"}


@contextmanager
def _without_collection() -> Generator[None, None, None]:
    """Without Python's search for cycles, which would walk through the program's objects for every few new records."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
