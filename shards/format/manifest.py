"""Metadata of a shard set: a record for each shard, a manifest for the set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from operator import itemgetter
from typing import Any

from shards.format.layout import SCHEMA, SCHEMA_16
from shards.format.scaling import Scaling

MANIFEST = "manifest.json"
QUARANTINE = "quarantine.jsonl"
NUMBERED, IN_IDX = "numbered", "idx"  # Manifest.keys


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
        several: Number of images that are the first of a TIFF's pages.
        own_range: Number of images of floats or 32 bits, which became 8 by a range of their own.
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
    several: int = 0
    own_range: int = 0

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
        for name, count in (("several", record.several), ("own_range", record.own_range)):
            if type(count) is not int or count < 0:
                raise TypeError(f"{name} is {str(count)[:40]}")
        return record

    def to_json(self) -> dict[str, Any]:
        """The record as values for JSON."""
        return {name: value for name, value in asdict(self).items() if _OPTIONAL.get(name) != value}


# The last fields, left out of a record where they have these values, as in records of earlier versions.
_OPTIONAL = {
    **{"names_sha256": "", "decoders": "", "levels_sha256": "", "channels": 3},
    **{"reduced": 0, "several": 0, "own_range": 0},
}
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
