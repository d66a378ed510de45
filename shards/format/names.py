"""The names of a shard's images in their source (`.names`): a line of JSON each, compressed by bzip2.

A line is the name, or, of an image that was fetched from a URL which is not its name, a list of name and URL.
"""

from __future__ import annotations

import bz2
import json
from collections.abc import Sequence

from shards.format.manifest import parse_json

LONGEST = 4096  # bytes of a name as JSON; Linux's longest path
LONGEST_LINE = 2 * LONGEST + len("[,]\n")
_CUT = "…"


def names_bytes(names: Sequence[str | tuple[str, str]]) -> bytes:
    """Content of a `.names` file; of an image with a URL name and URL. What is longer than `LONGEST` loses its end.

    bzip2, not gzip: its output has been the same in all versions, so that equal names make equal files everywhere.
    """
    return bz2.compress(b"".join(_line(name) for name in names))


def names_of_bytes(data: bytes, name: str, samples: int) -> list[tuple[str, str]]:
    """Names and URLs of a shard's images by row from the content of a `.names` file; a URL is empty if there is none.

    Args:
        data: The file's content.
        name: The file's name, for errors.
        samples: Expected number of names.

    Raises:
        ValueError: The file does not hold that number of names.
    """
    reader = bz2.BZ2Decompressor()
    try:
        text = reader.decompress(data, samples * LONGEST_LINE + 1)
    except OSError:
        raise ValueError(f"{name} is damaged: it is not compressed by bzip2") from None
    lines = text.split(b"\n")
    if not reader.eof or reader.unused_data or lines.pop() or len(lines) != samples:
        raise ValueError(f"{name} is damaged: it does not hold the names of {samples:,} images")
    found = [(value, "") if isinstance(value := parse_json(line), str) else value for line in lines]
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 and _are_text(*pair) for pair in found):
        raise ValueError(f"{name} is damaged: a line is no text in JSON")
    return [(own, url) for own, url in found]


def _are_text(*values: object) -> bool:
    return all(isinstance(value, str) for value in values)


def _line(name: str | tuple[str, str]) -> bytes:
    if isinstance(name, tuple):
        return b"[%s,%s]\n" % tuple(_text(each) for each in name)
    return _text(name) + b"\n"


def _text(name: str) -> bytes:
    line = json.dumps(name, ensure_ascii=False).encode()
    while len(line) > LONGEST:
        text = name.encode()
        name = text[: len(text) - (len(line) - LONGEST) - len(_CUT.encode())].decode(errors="ignore") + _CUT
        line = json.dumps(name, ensure_ascii=False).encode()
    return line
