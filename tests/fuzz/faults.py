"""Faults that are put into a file, and what counts as a cause."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

EXTREMES = (0, 1, 2, 7, 127, 128, 255, 256, 32_767, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
ACCEPTED = "accepted"
_EXCEPTION = re.compile(r"\b\w*(Error|Exception|Exit|Interrupt|Iteration|Warning|Rejected)\b")
_LEAKS = re.compile(r"Traceback|0x[0-9a-f]{6,}|<\w+.* object at|[\0-\x1f]")


class Field(NamedTuple):
    """A length, size or offset in a file; `form` is of `struct`, or `octal` for digits as in a tar."""

    place: int
    form: str


@dataclass(frozen=True)
class Kind:
    """How one kind of file is damaged and read.

    Attributes:
        originals: the whole files that inputs are made from.
        fields: the fields of a file that is damaged perhaps.
        repair: sets the checksums right, by which most faults would be found before they reach the reader.
        outcome: the reader's answer to input N, given a folder of its own: ACCEPTED, or the cause of the rejection.
    """

    originals: Callable[[], list[bytes]]
    fields: Callable[[bytes], list[Field]]
    repair: Callable[[bytes, np.random.Generator], bytes]
    outcome: Callable[[bytes, int, Path], str]


def damaged(kind: Kind, seed: int, number: int) -> bytes:
    """Input `number`, which depends on the seed and the number alone: one to six faults."""
    rng = np.random.default_rng((seed, number))
    originals = kind.originals()
    data = bytearray(originals[rng.integers(len(originals))])
    for _ in range(int(rng.choice([1, 1, 1, 2, 3, 6]))):
        fields = kind.fields(bytes(data)) if rng.random() < 0.4 else []
        if fields:
            set_field(data, fields[rng.integers(len(fields))], rng)
        else:
            _damage(data, rng, reach=len(data) if rng.random() < 0.5 else min(len(data), 200))
    if rng.random() < 0.05:
        data += originals[rng.integers(len(originals))]
    return kind.repair(bytes(data), rng) if rng.random() < 0.7 else bytes(data)


def set_field(data: bytearray, field: Field, rng: np.random.Generator) -> None:
    """Write an extreme value into a field."""
    value = int(rng.choice(np.array(EXTREMES, dtype=np.uint64)))
    if field.form == "octal":
        data[field.place : field.place + 12] = b"%011o\0" % (value % 8**11)
    else:
        size = struct.calcsize(field.form)
        order = "little" if field.form[0] == "<" else "big"
        data[field.place : field.place + size] = (value % 256**size).to_bytes(size, order)


def _damage(data: bytearray, rng: np.random.Generator, reach: int) -> None:
    """Add one fault before byte `reach`: changed bits, bytes or numbers; ranges lost, doubled, inserted, swapped."""
    place, other = (int(rng.integers(max(1, reach))) for _ in range(2))
    length = int(rng.integers(1, 40))
    fault = int(rng.integers(9))
    if fault == 0 and data:
        data[place % len(data)] ^= 1 << int(rng.integers(8))
    elif fault in (1, 2):
        data[place : place + 1] = rng.bytes(1)
    elif fault == 3:
        data[place : place + 4] = int(rng.choice([0, 1, 255, 65_535, 2**31 - 1, 2**32 - 1])).to_bytes(4, "big")
    elif fault == 4:
        del data[place : place + length]
    elif fault == 5:
        data[place:place] = data[place : place + length]
    elif fault == 6:
        data[place:place] = rng.bytes(length)
    elif fault == 7:
        one, two = data[place : place + length], data[other : other + length]
        data[place : place + len(one)], data[other : other + len(two)] = two, one
    elif rng.random() < 0.3:
        del data[place:]


def names_nothing(cause: str) -> str:
    """What is wrong with a cause, as a text for people; empty if it says what is wrong."""
    if _LEAKS.search(cause):
        return "shows the program's inside"
    words = re.findall(r"[A-Za-z]{2,}", _EXCEPTION.sub("", cause))
    return "names nothing" if len(words) < 3 or _EXCEPTION.fullmatch(cause.split(": ")[-1]) else ""
