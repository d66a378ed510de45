"""Damaged `.levels` of a 16-bit set through `verify`, whose records have the hash of the right ones, or their own."""

from __future__ import annotations

import bz2
import functools
import hashlib
import shutil
import tempfile
from pathlib import Path

import numpy as np

from shards import ShardSet
from shards.format.levels import levels_of_bytes
from shards.verify import verify
from tests.fuzz.faults import ACCEPTED, Field, Kind
from tests.support.pictures import cells, png_16
from tests.support.sets import pack_set

_NAME = "shard-000000.levels"


@functools.cache
def _files() -> dict[str, bytes]:
    """All files of a 16-bit set of one shard, by name."""
    with tempfile.TemporaryDirectory() as folder:
        src = Path(folder) / "src"
        src.mkdir()
        for number in range(2):
            (src / f"{number}.png").write_bytes(png_16(cells() + np.uint16(number)))
        out = pack_set(src, Path(folder) / "set", keep_16_bit=True)
        return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


@functools.cache
def _originals() -> list[bytes]:
    whole = _files()[_NAME]
    return [whole, whole, whole, bz2.compress(bytes(1 << 26))]


def _fields(data: bytes) -> list[Field]:
    """The header of bzip2, and that of its first block."""
    return [Field(place, form) for place in range(4, min(len(data), 24)) for form in ("<B", ">I")]


def _repair(data: bytes, rng: np.random.Generator) -> bytes:
    """Counts with some bytes of the damaged file in them, compressed: damage that bzip2's own checksum hides."""
    counts = bytearray(bz2.decompress(_files()[_NAME]))
    place = int(rng.integers(len(counts)))
    counts[place : place + 24] = data[: int(rng.choice([8, 23, 24, 24, 24]))]
    return bz2.compress(counts)


def _outcome(data: bytes, number: int, folder: Path) -> str:
    """Of every second input the records have the hash, which else finds any damage."""
    place, files = folder / "set", dict(_files())
    if number % 2:
        right, own = (hashlib.sha256(each).hexdigest().encode() for each in (files[_NAME], data))
        files = {name: whole.replace(right, own) for name, whole in files.items()}
    files[_NAME] = data
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name, whole in files.items():
        (place / name).write_bytes(whole)
    with ShardSet(place) as found:
        problems = [str(problem) for of_shard in verify(found, 1) for problem in of_shard]
    try:
        sound = (levels_of_bytes(data, _NAME) == levels_of_bytes(_files()[_NAME], _NAME)).all()
    except ValueError:
        sound = False
        if not any(problem.startswith(_NAME) for problem in problems):
            return f"FAULT: what holds no counts passes: {problems}"
    if not sound and not number % 2 and not problems:
        return "FAULT: other counts pass"
    return "rejected: " + problems[0] if problems else ACCEPTED


LEVELS = Kind(_originals, _fields, _repair, _outcome)
