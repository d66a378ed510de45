"""Metadata of a shard set: a record for each shard, a manifest for the set."""

from __future__ import annotations

import gc
import hashlib
import json
import re
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

from shards.errors import ShardSetError
from shards.format.layout import BLOCK, MAX_CLASSES, MAX_SHARD_SIZE, MAX_SHARDS, SCHEMA, SCHEMA_16
from shards.format.scaling import Scaling

MANIFEST = "manifest.json"
QUARANTINE = "quarantine.jsonl"
NUMBERED, IN_IDX = "numbered", "idx"  # Manifest.keys
MAX_BYTES = 1 << 30  # of a manifest: a million records have a third of that
_MAX_VALUES = 1 << 24  # values, and objects and lists, of a manifest: a million records have half of that
_NUMBERED = re.compile(r"(?:shard-[0-9]{6}\n)*")
# Stems of files in the set's folder, not hidden. Indexing takes names that are printable; those never leave the folder.
_OF_TARS = re.compile(r"(?:[^./\x00-\x1f\x7f\ud800-\udfff][^/\x00-\x1f\x7f\ud800-\udfff]*\n)*")
_LONGEST_NAME = 255 - len(".tar.part")  # bytes of a name, with what the cache appends: file systems bear 255


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One complete shard.

    Attributes:
        name: Stem of its files: `shard-000012`, or that of an indexed tar.
        samples: Number of images. If every image was left out it is 0, and the record is the shard's only file
            (besides the tar, if it is an indexed one).
        bytes: Size of the tar.
        sha256: SHA-256 of the tar, hex.
        index_sha256: SHA-256 of the `.npy` file, hex.
        quarantined: Number of images left out.
        plan: Identity of the plan that it was packed by.
        names_sha256: SHA-256 of the `.names` file, hex; empty if the images' names were not kept.
        decoders: Packages besides Pillow that decoded some of its images, and their versions, as
            `pillow-heif 1.8.1, rawpy 0.28.0`; empty if there were none.
        levels_sha256: SHA-256 of the `.levels` file, hex; empty if the images have 8 bits.
        channels: 1 if all images are grey, else 3.
        reduced: Number of images that had 16 bits and were packed with 8.
    """

    name: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str
    quarantined: int
    plan: str
    names_sha256: str = ""
    decoders: str = ""
    levels_sha256: str = ""
    channels: int = 3
    reduced: int = 0

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ShardRecord:
        """Record from decoded JSON; KeyError or TypeError if a field is missing or of a wrong type."""
        # Quick on purpose: opening a large set builds a hundred thousand records.
        record = cls(*_FIELDS(values), *map(values.get, _OPTIONAL, _OPTIONAL.values()))
        for name in ("samples", "bytes", "quarantined"):
            if not isinstance(values[name], int) or values[name] < 0:
                raise TypeError(f"{name} is {values[name]!r}")
        texts = (
            *(record.name, record.sha256, record.index_sha256, record.plan, record.names_sha256, record.decoders),
            record.levels_sha256,
        )
        if not all(type(text) is str for text in texts):
            raise TypeError(f"a text field of the record {record.name!r} has another type")
        if record.channels not in (1, 3) or type(record.reduced) is not int or record.reduced < 0:
            raise TypeError(f"channels is {str(record.channels)[:40]}, and reduced {str(record.reduced)[:40]}")
        return record

    def to_json(self) -> dict[str, Any]:
        """The record as values for JSON."""
        return {name: value for name, value in asdict(self).items() if _OPTIONAL.get(name) != value}


# The last fields, left out of a record where they have these values, as in records of earlier versions.
_OPTIONAL = {"names_sha256": "", "decoders": "", "levels_sha256": "", "channels": 3, "reduced": 0}
_FIELDS = itemgetter(*(field.name for field in fields(ShardRecord) if field.name not in _OPTIONAL))


@dataclass(frozen=True)
class Quarantined:
    """An image that was left out: its path below the source, and the reason."""

    source: str
    reason: str

    @classmethod
    def from_line(cls, line: bytes | str) -> Quarantined:
        """Entry from a line of quarantine.jsonl; ValueError if it is not one."""
        match parse_json(line):
            case {"source": str(source), "reason": str(reason)}:
                return cls(source, reason)
        raise ValueError("it has no `source` and `reason`")

    def line(self) -> str:
        """The line of quarantine.jsonl."""
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Appended:
    """What a packing with --append has added to a set.

    Attributes:
        first: Number of its first shard.
        shards: Number of its shards.
        base: Digest of the set before.
        plan: Identity of its plan.
        options: As of the manifest.
        source: As of the manifest.
        made_by: As of the manifest.
        scaling: Of the set before, if its images have 16 bits.
    """

    first: int
    shards: int
    base: str
    plan: str
    options: dict[str, Any]
    source: dict[str, Any]
    made_by: dict[str, str]
    scaling: Scaling | None = None

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Appended:
        """What decoded JSON says; KeyError, TypeError or ValueError if a field is missing or wrong."""
        kinds = (int, int, str, str, dict, dict, dict)
        for field, kind in zip(fields(cls), kinds, strict=False):
            if not isinstance(values[field.name], kind):
                raise TypeError(f"{field.name} of `appended` is {str(values[field.name])[:40]!r}")
        given = {field.name: values[field.name] for field in fields(cls)[: len(kinds)]}
        scaling = values.get("scaling")
        channels = len(scaling["low"]) if isinstance(scaling, dict) else 3  # of the set before, which may be grey
        return cls(**given, scaling=Scaling.from_json(scaling, channels))

    def to_json(self) -> dict[str, Any]:
        """The values for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "scaling" or value is not None}


@dataclass(frozen=True)
class Manifest:
    """A complete shard set.

    Attributes:
        samples: Number of images.
        bytes: Total size of the tars.
        classes: Class names by label; empty if the set has no labels.
        quarantined: Number of images left out; quarantine.jsonl names them.
        options: Options that affect the bytes: those of PackOptions.deciding, or `check` for indexed tars.
        source: Number of images (or of indexed tars), bytes, and hash of the names and sizes.
        plan: Identity of source and options together.
        made_by: Versions of the software that packed the set.
        records: The shards in order.
        keys: `numbered` for a packed set, whose keys consist of the numbers of shard and row; `idx` for indexed
            tars, whose keys are the names in the `.idx` files.
        appended: What was added later, in order; options, source, plan and made_by are of the first packing.
        scaling: Range of the values, if the images have 16 bits.
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
    appended: tuple[Appended, ...] = ()
    scaling: Scaling | None = None

    @cached_property
    def channels(self) -> int:
        """1 if all images are grey, else 3. Sets of earlier versions have 3."""
        return 1 if self.samples and all(record.channels == 1 for record in self.records if record.samples) else 3

    @cached_property
    def bits(self) -> int:
        """Bits of a channel: 8 (JPEGs) or 16 (PNGs)."""
        return 16 if any(record.levels_sha256 for record in self.records) else 8

    @property
    def digest(self) -> str:
        """Identity of the packed bytes, hex: equal sets have equal digests, wherever they were packed."""
        digest = hashlib.sha256(SCHEMA.encode())
        for line in self._lines():
            digest.update(line)
        return digest.hexdigest()

    def before(self, digest: str) -> Manifest | None:
        """The manifest of the set that had a digest before images were appended; None if it never had."""
        state = hashlib.sha256(SCHEMA.encode())
        for shards, line in enumerate(self._lines(), start=1):
            state.update(line)
            if state.hexdigest() == digest:
                records = self.records[:shards]
                samples, size = sum(record.samples for record in records), sum(record.bytes for record in records)
                appended = tuple(each for each in self.appended if each.first < shards)
                later = self.appended[len(appended) :]
                scaling = later[0].scaling if later else self.scaling
                return replace(self, samples=samples, bytes=size, records=records, appended=appended, scaling=scaling)
        return None

    def _lines(self) -> Iterator[bytes]:
        for record in self.records:
            yield f"\n{record.name} {record.samples} {record.sha256} {record.index_sha256}".encode()

    def to_bytes(self) -> bytes:
        """JSON text with one line per record."""
        schema = SCHEMA if self.bits == 8 else SCHEMA_16
        values = {"schema": schema, **{f.name: getattr(self, f.name) for f in fields(self)}}
        values |= {"classes": list(self.classes), "channels": self.channels, "bits": self.bits}
        values["appended"] = [each.to_json() for each in self.appended]
        values["scaling"] = None if self.scaling is None else self.scaling.to_json()
        for name in ("appended", "scaling"):
            if not values[name]:
                del values[name]
        del values["records"]
        # One record per line: `indent` alone would put each of a record's fields on a line of its own.
        head = json.dumps(values, indent=2, ensure_ascii=False)[:-2]
        records = ",\n".join("    " + json.dumps(record.to_json()) for record in self.records)
        return f'{head},\n  "records": [\n{records}\n  ]\n}}\n'.encode()


def parse_json(data: bytes | str) -> Any:
    """Decoded JSON; any damage raises ValueError."""
    try:
        # as UTF-8 alone: json.loads would guess from the first bytes
        return json.loads(data if isinstance(data, str) else data.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is no text in UTF-8") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


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
            f"{place} is damaged ({cause}); run fastmoco-shard again with the same --src and --out"
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


_TYPES = {
    **dict.fromkeys(("samples", "bytes", "quarantined"), int),
    **dict.fromkeys(("options", "source", "made_by"), dict),
    **dict.fromkeys(("classes", "records", "appended"), list),
    "plan": str,
}
_PLAIN = {field.name for field in fields(Manifest)} - {"records", "classes", "appended", "scaling"}


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
