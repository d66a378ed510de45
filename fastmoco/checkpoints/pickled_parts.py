"""Placeholders for what a pickle builds, and the account of how much it may build (`pickles.scan`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

DEEPEST = 60
"""Levels of containers; a run's state has six."""
LONGEST = 1 << 24
"""Bytes of a pickle without its tensors; that of a ResNet-50's whole run has 200 kB."""
_ENTRIES = 10**7  # of the whole tree, shared parts counted as often as they occur
_COPIES = 4  # how often the bytes of a pickle may be copied by what it calls; torch.save's own need one
_SHARED = 16  # how often the tensors of a file may cover it; a network and its average share less
_SMALL = 1 << 20  # bytes that are no matter, whatever the file's size

STORAGES = {
    f"torch.{name}Storage": dtype.itemsize
    for name, dtype in {
        "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
    }.items()
} | {"torch.storage.UntypedStorage": 1}  # fmt: skip
"""Bytes of an element of each class of storages."""


class Refused(Exception):
    """The pickle is not what torch.save writes of tensors and plain values; the message says why."""


class Unknown(Refused):
    """The pickle names a class or function that is no tensor's or plain value's.

    Attributes:
        held: its name.
    """

    def __init__(self, held: str) -> None:
        super().__init__(f"it holds {held}, which is no tensor or plain value")
        self.held = held


@dataclass(frozen=True)
class Storage:
    """The bytes of tensors, as a pickle names them.

    Attributes:
        key: its name in the file.
        size: in bytes.
        width: bytes of an element.
    """

    key: str
    size: int
    width: int

    def part(self, offset: int, size: int) -> Storage:
        """Elements of the storage as a storage of their own, as files from before torch 0.4 have them."""
        if offset < 0 or size < 0 or (offset + size) * self.width > self.size:
            raise Refused(f"it takes a part of its storage {self.key!r} that is not there")
        return Storage(self.key, size * self.width, self.width)


@dataclass(frozen=True)
class Named:
    """A class or function."""

    name: str


@dataclass(eq=False, slots=True)
class Made:
    """Stands for what a pickle builds: a container, a tensor, or an object of few known classes.

    Attributes:
        kind: what it is.
        items: those of a list or tuple.
        keys: those of a dictionary.
        size: bytes of a string of bytes, or of an element of a numpy type.
        depth: levels of containers, itself included.
        entries: values in it, those in its parts included.
        placed: it is within another, and must not change from then on.
    """

    kind: str
    items: list[Any] | tuple[Any, ...] = ()
    keys: set[Any] | None = None
    size: int = 0
    depth: int = 1
    entries: int = 1
    placed: bool = False


@dataclass
class Account:
    """What a pickle has built so far, against what its file accounts for.

    Attributes:
        bound: size of the file.
        read: bytes of the pickle so far.
    """

    bound: int
    read: int = 0
    storages: dict[str, Storage] = field(default_factory=dict)
    _stored: int = 0
    _made: int = 0
    _copied: int = 0
    _covered: int = 0

    def make(self, kind: str, parts: list[Any] | tuple[Any, ...] = (), **more: Any) -> Made:
        """A placeholder that holds `parts`."""
        # what is made takes up to 250 bytes, of an instruction of one byte; torch.save also writes where to remember it
        self._made += 1
        if self._made > 1000 + self.read // 4:
            raise Refused("it makes more objects than torch.save does in as many bytes")
        made = Made(kind, **more)
        self.place(made, parts)
        return made

    def place(self, into: Made, parts: list[Any] | tuple[Any, ...]) -> None:
        """Put values into a container."""
        into.entries += len(parts)
        for part in parts:
            if part is into:
                raise Refused("it has a value that holds itself")
            if isinstance(part, Made):
                part.placed = True
                into.depth = max(into.depth, part.depth + 1)
                into.entries += part.entries
        if into.depth > DEEPEST:
            raise Refused(f"its values are nested more than {DEEPEST} levels deep")
        if into.entries > _ENTRIES:
            raise Refused(f"it has more than {_ENTRIES:,} values")

    def set_keys(self, into: Made, keys: list[Any]) -> None:
        """Give a dictionary or a set its keys."""
        into.keys = into.keys or set()
        for key in keys:
            # no others: the hash of nested tuples takes for ever, and large integers can be chosen to have one hash
            for part in key.items if isinstance(key, Made) and key.kind == "tuple" else (key,):
                small = isinstance(part, int) and abs(part) < 1 << 32
                text = isinstance(part, Made) and part.kind == "bytes"
                if not (small or text or part is None or isinstance(part, str | float | torch.dtype)):
                    raise Refused("it has a key that is no name or number")
            into.keys.add(key)

    def charge(self, size: int) -> None:
        """Account for bytes that a call copies."""
        self._copied += size
        if self._copied > max(_SMALL, _COPIES * min(self.bound, LONGEST)):
            raise Refused("it takes more memory than the file has bytes")

    def store(self, storage: Storage) -> None:
        """Account for a storage, which several tensors may name."""
        known = self.storages.get(storage.key)
        if known is None:
            self.storages[storage.key] = storage
            self._stored += storage.size
        elif known != storage:
            raise Refused(f"it gives its storage {storage.key!r} two sizes")
        if self._stored > self.bound:
            raise Refused(f"it has storages of {self._stored:,} bytes, and the file has {self.bound:,}")

    def cover(self, storage: Storage, offset: int, shape: list[int], stride: list[int], width: int) -> None:
        """Account for a tensor."""
        count = math.prod(shape)
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if count and (last + 1) * width > storage.size:
            raise Refused(f"a tensor of {count:,} values reaches beyond its storage of {storage.size:,} bytes")
        self._covered += count * width
        if count * width > max(self.bound, _SMALL) or self._covered > max(_SHARED * self.bound, _SMALL):
            raise Refused("its tensors have more bytes than the file")
