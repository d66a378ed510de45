"""Reads a manifest, and checks that its parts agree: what passes leads to no file outside the set's folder."""

from __future__ import annotations

import gc
import re
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from shards.errors import ShardSetError
from shards.format.layout import BLOCK, MAX_CLASSES, MAX_SHARD_SIZE, MAX_SHARDS, SCHEMA, SCHEMA_16
from shards.format.manifest import IN_IDX, NUMBERED, Appended, Manifest, ShardRecord, parse_json
from shards.format.scaling import Scaling

MAX_BYTES = 1 << 30  # of a manifest: a million records have a third of that
_MAX_VALUES = 1 << 24  # values, and objects and lists, of a manifest: a million records have half of that
_NUMBERED = re.compile(r"(?:shard-[0-9]{6}\n)*")
# Stems of files in the set's folder, not hidden. Indexing takes names that are printable; those never leave the folder.
_OF_TARS = re.compile(r"(?:[^./\x00-\x1f\x7f\ud800-\udfff][^/\x00-\x1f\x7f\ud800-\udfff]*\n)*")
_LONGEST_NAME = 255 - len(".tar.part")  # bytes of a name, with what the cache appends: file systems bear 255
_TYPES = {
    **dict.fromkeys(("samples", "bytes", "quarantined"), int),
    **dict.fromkeys(("options", "source", "made_by"), dict),
    **dict.fromkeys(("classes", "records", "appended"), list),
    "plan": str,
}
_PLAIN = {field.name for field in fields(Manifest)} - {"records", "classes", "appended", "scaling"}


def read_manifest(path: Path) -> Manifest:
    """Manifest at `path`.

    Raises:
        OSError: The file cannot be read.
        ShardSetError: It is not a manifest, or has another schema.
    """
    return parse_manifest(path.read_bytes(), str(path))


def parse_manifest(data: bytes, place: str) -> Manifest:
    """Manifest from the content of a file.

    Args:
        data: The file's content.
        place: Its path or URL, for errors.

    Raises:
        ShardSetError: It is not a manifest, or has another schema.
    """
    try:
        with _without_collection():
            _check_size(data)
            values = parse_json(data)
            schema = values["schema"]
            if schema in (SCHEMA, SCHEMA_16):
                return _manifest(values)
    except (ValueError, KeyError, TypeError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise ShardSetError(
            f"{place} is damaged ({cause}); run fastmoco pack again with the same --src and --out"
        ) from None
    raise ShardSetError(f"{place} has schema {schema!r}; this version reads {SCHEMA!r} and {SCHEMA_16!r}")


def _check_size(data: bytes) -> None:
    """Raise ValueError for what would need more memory than the largest set does, before it is parsed."""
    if len(data) > MAX_BYTES or data.count(b",") > _MAX_VALUES or data.count(b"[") + data.count(b"{") > _MAX_VALUES:
        raise ValueError("it is longer than that of any set")


def _check_records(records: tuple[ShardRecord, ...], values: dict[str, Any]) -> None:
    """Raise ValueError for names that lead out of the set's folder, and for counts that do not add up.

    Quick on purpose, as `ShardRecord.from_json` is: by sums and by texts of all records.
    """
    names = [record.name for record in records]
    numbered = values["keys"] == NUMBERED
    pattern, lines = (_NUMBERED if numbered else _OF_TARS), "\n".join([*names, ""])
    # a name that held a line break would stand for two
    if not pattern.fullmatch(lines) or lines.count("\n") != len(names):
        wrong = next(name for name in names if "\n" in name or not pattern.fullmatch(f"{name}\n"))
        raise ValueError(f"{wrong[:80]!r} is no name of a shard")
    if not numbered and max((len(name.encode()) for name in names), default=0) > _LONGEST_NAME:
        raise ValueError(f"a name of a shard is longer than {_LONGEST_NAME} bytes")
    if len(set(names)) != len(names):
        raise ValueError(f"the name {Counter(names).most_common(1)[0][0]!r} occurs twice")
    hashes = [
        text
        for record in records
        for text in (record.sha256, record.index_sha256, record.names_sha256, record.levels_sha256)
    ]
    text = "".join(hashes)
    if not set(map(len, hashes)) <= {0, 64} or len(bytes.fromhex(text)) * 2 != len(text):
        raise ValueError("a SHA-256 of a record is not one")
    for name in ("samples", "bytes"):
        total = sum(getattr(record, name) for record in records)
        if total != values[name] or total >= 1 << 62:
            raise ValueError(f"{name} is {values[name]}, and {total} over the records")
    crowded = next((record for record in records if record.samples * BLOCK > record.bytes), None)
    if crowded is not None:
        raise ValueError(f"{crowded.name} cannot hold {crowded.samples} images in {crowded.bytes} bytes")
    if numbered and max((record.samples for record in records), default=0) > MAX_SHARD_SIZE:
        raise ValueError(f"a shard has more than {MAX_SHARD_SIZE:,} images")
    if len(records) > MAX_SHARDS or len(values["classes"]) > MAX_CLASSES:
        raise ValueError(f"it has {len(records):,} shards and {len(values['classes']):,} classes")


def _manifest(values: dict[str, Any]) -> Manifest:
    """Manifest from decoded JSON; ValueError, KeyError or TypeError if it is not one."""
    values.setdefault("keys", NUMBERED)  # missing in sets that were packed before tars could be indexed
    values.setdefault("appended", [])  # missing where nothing was appended
    values.setdefault("scaling", None)  # missing where images have 8 bits
    if values["keys"] not in (NUMBERED, IN_IDX):
        raise ValueError(f"keys is {values['keys']!r}")
    for name, kind in _TYPES.items():
        if not isinstance(values[name], kind):
            raise TypeError(f"{name} is {str(values[name])[:40]!r}")
    records = tuple(ShardRecord.from_json(record) for record in values["records"])
    _check_records(records, values)
    if not all(isinstance(name, str) for name in values["classes"]):
        raise TypeError("a class name is not text")
    appended = tuple(Appended.from_json(each) for each in values["appended"])
    plain = {name: values[name] for name in _PLAIN}
    manifest = Manifest(records=records, classes=tuple(values["classes"]), appended=appended, **plain)
    _check_pixels(manifest, values)
    return replace(manifest, scaling=Scaling.from_json(values["scaling"], manifest.channels))


def _check_pixels(manifest: Manifest, values: dict[str, Any]) -> None:
    """Raise ValueError if what is said of the images as a whole is not what the records say."""
    for name in ("channels", "bits"):
        found = getattr(manifest, name)
        if values.get(name, found) != found:
            raise ValueError(f"{name} is {str(values[name])[:40]}, and {found} by the records")
    deep = manifest.bits == 16
    mixed = any(bool(record.levels_sha256) != deep for record in manifest.records if record.samples)
    if mixed:
        raise ValueError("some shards have images of 8 bits and some of 16")
    if values["schema"] != (SCHEMA_16 if deep else SCHEMA):
        raise ValueError(f"images of {manifest.bits} bits are not of the schema {values['schema']!r}")
    if deep != (values["scaling"] is not None):
        raise ValueError(f"scaling is {'missing' if deep else 'given'}, and the images have {manifest.bits} bits")


@contextmanager
def _without_collection() -> Generator[None, None, None]:
    """Pause the garbage collector, which would scan all objects of the program again for every few new records."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
