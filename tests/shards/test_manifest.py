"""A manifest from outside: nothing in it leads out of the set's folder, or counts more than it holds."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards import ShardSet, ShardSetError
from shards.format.parsing import MAX_BYTES, parse_manifest
from tests.support.faulty import Faults, FaultyServer
from tests.support.serving import serving

Change = Callable[[dict[str, Any]], object]
NAMES = [
    "../../../etc/shard-000001",
    "/etc/shard-000001",
    "..",
    "",
    "shard-00000\x00",
    "shard-0000²1",
    "shard-000001\nshard-000002",
    "shard-" + "0" * 5000 + "000001",
    "con",
]


def changed(packed: Path, change: Change) -> bytes:
    values = json.loads((packed / "manifest.json").read_bytes())
    change(values)
    return json.dumps(values).encode()


def refused(data: bytes, cause: str) -> None:
    with pytest.raises(ShardSetError, match=rf"^/set/manifest\.json is damaged \(ValueError: {cause}") as caught:
        parse_manifest(data, "/set/manifest.json")
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keys", ["numbered", "idx"])
def test_names_stay_in_the_folder(packed, name, keys):
    def change(values: dict[str, Any]) -> None:
        values["keys"] = keys
        values["records"][1]["name"] = name

    if keys == "idx" and name in ("con", "shard-0000²1"):
        return  # tars of others have any name
    refused(changed(packed, change), re.escape(f"{name[:80]!r}") + " is no name" if len(name) < 80 else "")


@pytest.mark.parametrize("name", ["laion 00001", "caf\u00e9.v1.2", "\u7535\u5f71", "a" * 246, "-rf", "shard-1"])
def test_tars_of_others_keep_their_names(packed, name):
    def change(values: dict[str, Any]) -> None:
        values["keys"] = "idx"
        values["records"][1]["name"] = name

    assert parse_manifest(changed(packed, change), "/set").records[1].name == name


def _set(place: str, name: str, value: object) -> Change:
    return lambda values: (values["records"][1] if place == "record" else values).update({name: value})


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (_set("set", "samples", 10**15), r"samples is 1000000000000000, and 120 over the records"),
        (_set("set", "bytes", 1), "bytes is 1, and"),
        (_set("record", "samples", 10**15), "samples is 120, and 1000000000000095 over the records"),
        (_set("record", "name", "shard-000000"), "the name 'shard-000000' occurs twice"),
        (_set("record", "sha256", "ab" * 31), "a SHA-256 of a record is not one"),
        (_set("record", "index_sha256", "z" * 64), "non-hexadecimal number found"),
        (lambda values: values.update(classes=["x"] * (10**6 + 1)), "it has 5 shards and 1,000,001 classes"),
    ],
)
def test_counts_and_hashes_are_held_against_the_records(packed, change, cause):
    refused(changed(packed, change), cause)


def test_as_many_images_as_bytes_are_no_set(packed):
    def change(values: dict[str, Any]) -> None:
        values["records"][1]["samples"] = 10**15
        values["samples"] = 95 + 10**15

    refused(changed(packed, change), r"shard-000001 cannot hold 1000000000000000 images in \d+ bytes")


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"a":' * 100_000, b"[0" + b",0" * (1 << 24) + b",0]"])
def test_nesting_and_length_are_bounded_before_anything_is_built(data):
    refused(data, "(it is nested too deeply|it is longer than that of any set)")


def test_a_manifest_of_five_gigabytes_is_not_read(packed, tmp_path, monkeypatch):
    (tmp_path / "manifest.json").touch()
    os.truncate(tmp_path / "manifest.json", 5 << 30)  # sparse
    told = rf"manifest\.json: it has more than the {MAX_BYTES:,} bytes that such a file can have"
    with pytest.raises(ShardSetError, match=told):
        ShardSet(tmp_path)
    monkeypatch.setattr("shards._opening.MAX_BYTES", 1000)
    monkeypatch.setenv("FASTMOCO_CACHE", str(tmp_path / "cache"))
    with (
        serving(FaultyServer(Faults(), {"/manifest.json": (packed / "manifest.json").read_bytes()})) as server,
        pytest.raises(ShardSetError, match=r"manifest\.json: it has more than the 1,000 bytes"),
    ):
        ShardSet(server.url)
