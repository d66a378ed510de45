"""Damaged manifests and indexes of shard sets through their reader."""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np

from shards import ShardSet
from shards.errors import SampleError, ShardSetError
from tests.fuzz.faults import ACCEPTED, Field, Kind
from tests.fuzz.images import JPEG
from tests.fuzz.runs import _bent, _of_text
from tests.support.sets import pack_set


@functools.cache
def _files() -> dict[str, bytes]:
    """All files of a small set, by name."""
    with tempfile.TemporaryDirectory() as folder:
        src = Path(folder) / "src"
        for number in range(6):
            path = src / f"class-{number % 2}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(JPEG.originals()[number % 2])
        out = pack_set(src, Path(folder) / "set", shard_size=3)
        return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


def _originals() -> list[bytes]:
    # the first line names the file
    damaged = [name for name in _files() if name.endswith((".npy", ".idx", ".names"))]
    return [f"{name}\n".encode() + _files()[name] for name in ["manifest.json"] * len(damaged) + damaged]


def _of_set(data: bytes) -> list[Field]:
    name, _, content = data.partition(b"\n")
    if name == b"manifest.json":
        return _of_text(data)
    return [Field(len(name) + 1 + place, "<Q") for place in range(0, max(0, len(content) - 8), 4)]


def _repair(data: bytes, rng: np.random.Generator) -> bytes:
    return _bent(data, rng) if data.startswith(b"manifest.json\n") else data


def _outcome(data: bytes, number: int, folder: Path) -> str:
    """A set with one damaged file: opened, and every sample read."""
    name, _, content = data.partition(b"\n")
    damaged = name.decode("latin1") if name.decode("latin1") in _files() else "manifest.json"
    place = folder / "set"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for file, whole in _files().items():
        (place / file).write_bytes(content if file == damaged else whole)
    said = []
    try:
        with ShardSet(place) as found:
            for sample in range(min(len(found), 20)):
                try:
                    found.check(sample)
                except SampleError as error:
                    said.append(str(error))
            with contextlib.suppress(ShardSetError):
                found.labels(np.arange(min(len(found), 20)))
            found.names(np.arange(min(len(found), 20)))
    except ShardSetError as error:
        said.append(str(error))
    return "rejected: " + said[0].replace(str(folder), "") if said else ACCEPTED


SET = Kind(_originals, _of_set, _repair, _outcome)
