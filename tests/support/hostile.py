"""Files of torch.save that are made to hurt their reader, by name."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable

import numpy as np
import torch

from tests.support.saved_files import saved, with_crcs

VALUES = torch.arange(6.0)
_NEST = 200_000


def archive(pickled: bytes, *more: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive as of torch.save with a pickle; the values of VALUES are its storage 0."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as written:
        members = [("data.pkl", pickled), ("byteorder", b"little"), ("version", b"3\n"), ("data/0", bytes_of(VALUES))]
        for name, content in [*members, *more]:
            written.writestr(f"a/{name}", content)
    return buffer.getvalue()


def bytes_of(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor."""
    return tensor.numpy().tobytes()


def changed(place: int, value: bytes) -> bytes:
    """A whole file in whose directory the entry of its tensor has other bytes at a place."""
    data = bytearray(saved({"a": VALUES}))
    begin = data.rindex(b"archive/data/0") - 46
    assert data[begin : begin + 4] == b"PK\1\2"
    data[begin + place : begin + place + len(value)] = value
    return bytes(data)


def text(value: str) -> bytes:
    """The instruction of a string."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    """The instruction of an integer."""
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def call(name: str, *given: bytes) -> bytes:
    """The instructions of a call."""
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode() + b"(" + b"".join(given) + b"tR"


def storage(count: int, kind: str = "FloatStorage", key: str = "0", more: bytes = b"") -> bytes:
    """The instructions of a storage."""
    return (
        b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(count) + more + b"tQ"
    )


def tensor(
    shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, count: int = 6, more: bytes = b""
) -> bytes:
    """The instructions of a tensor."""
    sizes = [b"(" + b"".join(map(number, given)) + b"t" for given in (shape, stride)]
    hooks = b"\x89" + call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", storage(count, more=more), number(offset), *sizes, hooks)


def held(value: bytes) -> bytes:
    """A pickle of {"a": value}."""
    return b"\x80\x02}" + text("a") + value + b"s."


def legacy(pickled: bytes, keys: list[str], content: bytes) -> bytes:
    """A file as torch wrote it before version 1.6."""
    whole = saved({"a": VALUES}, zipped=False)
    begin = whole.index(b"}q\0X\1\0\0\0a") - 2
    listed = b"\x80\x02](" + b"".join(map(text, keys)) + b"e."
    return whole[:begin] + pickled + listed + content


def legacy_storage(values: torch.Tensor) -> bytes:
    """A storage in a file from before torch 1.6."""
    return struct.pack("<q", len(values)) + bytes_of(values)


_VIEW = b"N"
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a tensor marked as a folder": (lambda: changed(38, b"\x10"), "member archive/data/0 is marked as a folder"),
    "a tensor compressed to nothing": (lambda: changed(20, bytes(4)), "member archive/data/0 is compressed"),
    "a method of compression": (lambda: changed(10, b"\x08"), "member archive/data/0 is compressed"),
    "an encrypted member": (lambda: changed(8, b"\x01"), "member archive/data/0 is marked"),
    "a tensor at another's place": (lambda: changed(42, bytes(4)), "overlaps with the one before it"),
    "a tensor in the middle of another member": (lambda: changed(42, b"\x40\0\0\0"), "overlaps|another header"),
    "a shorter tensor": (lambda: changed(20, b"\4\0\0\0\4\0\0\0"), "checksum of archive/data/0 is wrong"),
    "another checksum": (lambda: changed(16, b"\0"), "checksum of archive/data/0 is wrong"),
    "zeros that are 40 MB when unpacked": (
        lambda: archive(held(b"N"), ("data/1", bytes(40_000_000)), method=zipfile.ZIP_DEFLATED), "is compressed",
    ),
    "two directories": (lambda: changed(0, b"") + changed(38, b"\x10"), "its two ends differ"),
    "two ends": (lambda: saved({"a": VALUES})[:-22] + archive(held(b"N"))[-22:], "its two ends differ"),
    "two members that differ in capitals": (lambda: archive(held(b"N"), ("DATA/0", b"")), "two members a/DATA/0"),
    "a storage longer than its member": (lambda: archive(held(tensor((7,), (1,), count=7))), "28 bytes, and has 24"),
    "a storage of another type": (
        lambda: archive(held(storage(6, "DoubleStorage"))), "'0' is to have 48 bytes, and has 24",
    ),
    "a storage of two types": (
        lambda: archive(held(b"(" + storage(6) + storage(6, "IntStorage") + storage(3, "LongStorage") + b"t")),
        "gives its storage '0' two sizes",
    ),
    "a storage that is missing": (lambda: archive(held(storage(6, key="9"))), "'9' is to have 24 bytes, and has 0"),
    "a storage of 10^12 values": (lambda: archive(held(storage(10**12))), "has storages of 4,000,000,000,000 bytes"),
    "a storage of -1 values": (lambda: archive(held(storage(-1))), "names a storage as torch.save does not"),
    "a tensor beyond its storage": (lambda: archive(held(tensor((3, 3), (2, 1)))), "9 values reaches beyond"),
    "a tensor before its storage": (lambda: archive(held(tensor((3,), (-1,), 2))), "arguments that torch.save"),
    "a tensor of 10^12 values, all one": (
        lambda: archive(held(tensor((10**6, 10**6), (0, 0)))), "tensors have more bytes than the file",
    ),
    "a million tensors of one storage": (
        lambda: archive(held(b"(" + tensor((6, 20_000), (1, 0)) * 40 + b"t")), "tensors have more bytes than the file",
    ),
    "a bytearray of 10^12": (
        lambda: archive(held(call("__builtin__.bytearray", number(10**12)))), "calls bytearray with arguments",
    ),
    "a tensor that is not filled": (
        lambda: archive(held(call("torch.FloatTensor", number(10**6), number(10**6)))), "holds torch.FloatTensor",
    ),
    "a storage that is not filled": (
        lambda: archive(held(call("torch.storage.UntypedStorage", number(10**12)))), "calls what is no function",
    ),
    "an array that is not filled": (
        lambda: archive(held(call(
            "numpy.core.multiarray._reconstruct", b"cnumpy\nndarray\n", b"(" + number(10**12) + b"t",
            call("_codecs.encode", text("b"), text("latin1")),
        ))), "calls _reconstruct with arguments",
    ),
    "a copy of a copy": (
        lambda: archive(held(b"](" + text("x" * 10**6) + b"q\0" + b"e" + b"(" + call(
            "_codecs.encode", b"h\0", text("latin1")) * 20 + b"t\x86")), "takes more memory than the file has bytes",
    ),
    "lists in lists": (lambda: archive(held(b"]" * _NEST + b"a" * (_NEST - 1))), "more objects|nested more than 60"),
    "tuples in tuples": (lambda: archive(held(b")" + b"\x85q\0" * _NEST)), "nested more than 60 levels deep"),
    "tuples in tuples as a key": (
        lambda: archive(b"\x80\x02})" + b"\x85q\0" * _NEST + b"Ns."), "nested more than 60 levels deep",
    ),
    "a list of 2^50 entries": (
        lambda: archive(held(b")q\0" + b"h\0\x86q\0" * 50)), "more than 10,000,000 values",
    ),
    "a list that holds itself": (lambda: archive(held(b"]q\0h\0a")), "holds itself"),
    "a key that is a list": (lambda: archive(held(b"}]Ns")), "a key that is no name or number"),
    "keys of one hash": (
        lambda: archive(held(b"}(" + b"".join(number(k * (2**61 - 1)) + b"N" for k in range(1, 15)) + b"u")),
        "a key that is no name or number",
    ),
    "a dictionary whose items are hidden": (
        lambda: archive(held(call("collections.OrderedDict") + b"}" + text("items") + b"Nsb")),
        "changes an object as torch.save does not",
    ),
    "a tensor whose parts are set": (
        lambda: archive(held(tensor((6,), (1,)) + b"(" + storage(6) + number(0) + b"tb")),
        "changes an object as torch.save does not",
    ),
    "code": (lambda: archive(held(call("os.system", text("echo")))), "holds os.system"),
    "code by another name": (lambda: archive(held(call("builtins.eval", text("1")))), "holds eval"),
    "an instruction of another protocol": (lambda: archive(held(b"\x94")), "the instruction MEMOIZE"),
    "old, a storage of 10^12 values": (
        lambda: legacy(held(tensor((1,), (1,), count=10**12, more=_VIEW)), ["0"], b""), "has storages of",
    ),
    "old, a text of 4 GB": (
        lambda: legacy(held(b"X" + b"\xff\xff\xff\xff"), ["0"], b""), "expected 4294967295 bytes in a unicodestring4",
    ),
    "old, a storage without bytes": (
        lambda: legacy(held(tensor((6,), (1,), more=_VIEW)), [], bytes(64)), "list of storages is not that",
    ),
    "old, a storage that ends early": (
        lambda: legacy(held(tensor((6,), (1,), more=_VIEW)), ["0"], legacy_storage(VALUES)[:-4]), "'0' is to have 24",
    ),
    "old, a tensor beyond its storage": (
        lambda: legacy(held(tensor((7,), (1,), more=_VIEW)), ["0"], legacy_storage(VALUES)), "reaches beyond",
    ),
    "old, a part that is not there": (
        lambda: legacy(held(tensor((2,), (1,), more=b"(" + text("v") + number(5) + number(3) + b"t")), ["0"],
                       legacy_storage(VALUES)), "takes a part of its storage",
    ),
}  # fmt: skip
"""Each file, and what is said of it."""

GOOD: dict[str, Callable[[], bytes]] = {
    "by hand": lambda: archive(held(tensor((2, 3), (3, 1)))),
    "old, by hand": lambda: legacy(held(tensor((2, 3), (3, 1), more=_VIEW)), ["0"], legacy_storage(VALUES)),
    "repaired": lambda: with_crcs(changed(16, b"\0"), np.random.default_rng(0)),
}
"""Files that are made in the same ways, and are read."""
