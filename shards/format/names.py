"""The names of a shard's images in their source (`.names`): a line of JSON each, compressed by bzip2."""

from __future__ import annotations

import bz2
import json
from collections.abc import Sequence

from shards.format.manifest import parse_json

LONGEST = 4096  # bytes of a name as JSON; Linux's longest path
_CUT = "…"


def names_bytes(names: Sequence[str]) -> bytes:
    """Content of a `.names` file. A name that is longer than `LONGEST` bytes loses its end.

    bzip2, not gzip: its output has been the same in all versions, so that equal names make equal files everywhere.
    """
    return bz2.compress(b"".join(_line(name) for name in names))


def names_of_bytes(data: bytes, name: str, samples: int) -> list[str]:
    """Names of a shard's images by row from the content of a `.names` file.

    Args:
        data: The file's content.
        name: The file's name, for errors.
        samples: Expected number of names.

    Raises:
        ValueError: The file does not hold that number of names.
    """
    reader = bz2.BZ2Decompressor()
    try:
        text = reader.decompress(data, samples * (LONGEST + 1) + 1)
    except OSError:
        raise ValueError(f"{name} is damaged: it is not compressed by bzip2") from None
    lines = text.split(b"\n")
    if not reader.eof or reader.unused_data or lines.pop() or len(lines) != samples:
        raise ValueError(f"{name} is damaged: it does not hold the names of {samples:,} images")
    names = [parse_json(line) for line in lines]
    if not all(isinstance(each, str) for each in names):
        raise ValueError(f"{name} is damaged: a line is no text in JSON")
    return names


def _line(name: str) -> bytes:
    line = json.dumps(name, ensure_ascii=False).encode()
    while len(line) > LONGEST:
        text = name.encode()
        name = text[: len(text) - (len(line) - LONGEST) - len(_CUT.encode())].decode(errors="ignore") + _CUT
        line = json.dumps(name, ensure_ascii=False).encode()
    return line + b"\n"
