"""A hash of what a checkpoint says, stored in it: a change that the file's own checksums do not cover is found."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

import torch

KEY = "sha256"
"""Of a checkpoint's dictionary: `content_hash` of all the rest."""
_DEEPEST = 100  # of containers within each other; a run's state has six levels
_PART = 1 << 17  # bytes of a tensor that are copied at once


def sealed(state: Mapping[str, Any]) -> dict[str, Any]:
    """`state` with the hash of its content."""
    content = {name: value for name, value in state.items() if name != KEY}
    return {**content, KEY: content_hash(content)}


def matches(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's content is what was hashed when it was written; True where no hash was written.

    Raises:
        TypeError: the content is no tensors and plain values.
        ValueError: it is nested too deeply.
    """
    content = {name: value for name, value in state.items() if name != KEY}
    return KEY not in state or state[KEY] == content_hash(content)


def content_hash(state: Any) -> str:
    """SHA-256 of tensors and plain values, as 64 hexadecimal digits.

    It covers names, types, shapes and all bytes of the tensors. It depends neither on strides, devices, storages that
    tensors share and the order of a dictionary's entries, nor on how the state is written to a file. Python's lock is
    free while the bytes of a large tensor are hashed.

    Args:
        state: tensors, None, bool, int, float, str, bytes, and lists, tuples and dictionaries of these.

    Raises:
        TypeError: the state holds something else.
        ValueError: it is nested more than 100 levels deep, or contains itself.
    """
    return _digest(state, {}, 0).hex()


def _digest(value: Any, known: dict[int, bytes], depth: int) -> bytes:
    """Hash of one value from the hashes of its parts.

    `known` has the hashes of containers and tensors by `id`: a file of a few bytes can hold a list of lists of lists
    that has 2¹⁰⁰ entries, as each occurs twice in the next.
    """
    if depth > _DEEPEST:
        raise ValueError(f"values are nested more than {_DEEPEST} levels deep")
    if not isinstance(value, torch.Tensor | dict | list | tuple):
        return hashlib.sha256(_plain(value)).digest()
    found = known.get(id(value))
    if found is None:
        if isinstance(value, torch.Tensor):
            found = _of_tensor(value)
        else:
            found = hashlib.sha256(_of_container(value, known, depth + 1)).digest()
        known[id(value)] = found
    return found


def _of_container(value: dict | list | tuple, known: dict[int, bytes], depth: int) -> bytes:
    if isinstance(value, dict):
        pairs = [_digest(key, known, depth) + _digest(part, known, depth) for key, part in value.items()]
        return b"dict\0" + b"".join(sorted(pairs))
    kind = b"list\0" if isinstance(value, list) else b"tuple\0"
    return kind + b"".join(_digest(part, known, depth) for part in value)


def _of_tensor(tensor: torch.Tensor) -> bytes:
    result = hashlib.sha256(f"tensor\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
    # in parts: a copy in order of a whole tensor, made for each checkpoint, leaves holes in the process's memory
    whole = tensor.detach()
    rows = max(1, _PART // whole[0].nbytes) if whole.dim() and whole.numel() else 0
    for part in whole.split(rows) if rows else [whole]:
        plain = part.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
        result.update(plain.view(torch.uint8).numpy().data)
    return result.digest()


def _plain(value: Any) -> bytes:
    """A plain value as bytes, begun by its type."""
    match value:
        case None | bool():
            return str(value).encode()
        case int():  # not as digits: Python refuses more than 4300
            return b"int\0" + value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        case float():
            return b"float\0" + struct.pack("<d", value)
        case str():
            return b"str\0" + value.encode(errors="surrogatepass")
        case bytes():
            return b"bytes\0" + value
    raise TypeError(f"{type(value).__name__} is no tensor or plain value")
