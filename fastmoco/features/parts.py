"""The files of features: OUT/part-000000.* for each part of a set, its record last, and OUT/embedding.json.

docs/evaluation.md describes them. A part without its record, and features whose embedding.json is not complete, are
unfinished: the same command makes the rest.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastmoco.features.rows import Rows, npy, parquet, rows_of_parquet
from fastmoco.flags import ConfigError
from fastmoco.scalings import common
from shards.errors import UserError
from shards.format.manifest import parse_json
from shards.storage.base import Store
from shards.storage.store import open_store
from shards.words import in_words

ABOUT = "embedding.json"
SCHEMA = "fastmoco-embedding/1"
SUFFIXES = {"npy": (".npy", ".jsonl"), "parquet": (".parquet",)}
"""Files of a part by format, without its record."""


class EmbeddingError(UserError, RuntimeError):
    """Features cannot be written or read. The message has the place and the remedy."""


def stem(part: int) -> str:
    """Name of a part's files without suffix."""
    return f"part-{part:06d}"


def write_part(store: Store, part: int, rows: Rows, left_out: Sequence[int], kind: str, classes: Sequence[str]) -> None:
    """Write the files of a part, its record last.

    Args:
        store: where to.
        part: its number.
        rows: what it holds.
        left_out: ids of the images of the part that could not be read.
        kind: `npy` or `parquet`.
        classes: names by label.

    Raises:
        OSError: they cannot be written.
    """
    contents = parquet(rows, classes) if kind == "parquet" else npy(rows, classes)
    sizes = {suffix: len(data) for suffix, data in contents.items()}
    contents[".json"] = json.dumps({"rows": len(rows.ids), "left_out": list(left_out), "bytes": sizes}).encode()
    files = {stem(part) + suffix: store.partial(stem(part) + suffix) for suffix in contents}
    try:
        for path, data in zip(files.values(), contents.values(), strict=True):
            path.write_bytes(data)
        store.put(files)
    except OSError:
        for path in files.values():  # of a full disk
            path.unlink(missing_ok=True)
        raise


def read_about(store: Store) -> dict[str, Any] | None:
    """The content of embedding.json; None where there is none.

    Raises:
        EmbeddingError: it cannot be read.
    """
    try:
        about = parse_json(store.read(ABOUT, 1 << 30))
        if not isinstance(about, dict) or about["schema"] != SCHEMA:
            raise ValueError("it has another schema")
        whole = not about["complete"] or isinstance(about["classes"], list)
        if about["format"] not in SUFFIXES or type(about["parts"]) is not int or not whole:
            raise ValueError("a value has another type")
        common(about.get("scaling"))  # raises where it is no scaling
        return about
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EmbeddingError(in_words(error)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise EmbeddingError(f"{store.url}/{ABOUT} is damaged: {error}; write the features to another place") from None


def write_about(store: Store, about: dict[str, Any]) -> None:
    """Write embedding.json; raises OSError."""
    store.write(ABOUT, (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())


def done_parts(store: Store, kind: str) -> set[int]:
    """Numbers of the parts whose files are there; raises OSError."""
    names = set(store.names())
    numbers = {int(name[5:11]) for name in names if name.startswith("part-") and name.endswith(".json")}
    return {part for part in numbers if all(stem(part) + suffix in names for suffix in SUFFIXES[kind])}


def cut_parts(store: Store, kind: str) -> dict[int, str]:
    """Done parts with a file that has not the size in the part's record, each with words on that file.

    Records of earlier versions have no sizes: their parts pass.

    Raises:
        EmbeddingError: a record is damaged.
        OSError: the store cannot be read.
    """
    found, cut = store.sizes(), dict[int, str]()
    for part in sorted(done_parts(store, kind)):
        for suffix, size in record_of(store, part).get("bytes", {}).items():
            name = stem(part) + suffix
            if found.get(name) != size:
                cut[part] = f"{store.url}/{name} has {found.get(name, 0):,} of its {size:,} bytes"
    return cut


def record_of(store: Store, part: int) -> dict[str, Any]:
    """A part's record; raises EmbeddingError."""
    return _read(store, stem(part) + ".json", _record)


def _record(data: bytes) -> dict[str, Any]:
    match parse_json(data):
        case {"rows": int(), "left_out": list()} as record if isinstance(record.get("bytes", {}), dict):
            return record
    raise ValueError("it has no `rows` and `left_out`")


def about_of(place: str | Path) -> dict[str, Any]:
    """The content of embedding.json of complete features, in a folder or at a URL.

    Raises:
        EmbeddingError: there are none, or they are unfinished or damaged.
    """
    return opened(place)[1]


def opened(place: str | Path) -> tuple[Store, dict[str, Any]]:
    """The store of complete features, and the content of embedding.json; raises what `about_of` raises."""
    given = "give the folder that fastmoco embed --out wrote"
    try:
        store = open_store(place)
        if store.local and store.local.is_file():
            raise EmbeddingError(f"{store.url} is a file; {given}")
        about = read_about(store)
        if about is None:  # another folder's --out is refused
            remedy = given if store.names() else f"fastmoco embed --out {store.url} writes one"
            raise EmbeddingError(f"{store.url} has no {ABOUT}; {remedy}")
    except OSError as error:
        raise EmbeddingError(in_words(error)) from None
    if not about["complete"]:
        raise EmbeddingError(f"the features in {store.url} are unfinished; run the same fastmoco embed command again")
    return store, about


def read_rows(place: str | Path) -> Iterator[tuple[dict[str, Any], Rows]]:
    """Complete features, part by part.

    Args:
        place: folder or URL.

    Yields:
        The content of embedding.json, and a part's rows.

    Raises:
        EmbeddingError: there are none, they are unfinished, or a file is missing or damaged.
    """
    store, about = opened(place)
    for part in range(about["parts"]):
        yield about, read_part(store, about, part)


def read_part(store: Store, about: dict[str, Any], part: int, features: bool = True) -> Rows:
    """The rows of a part of complete features; without `features`, these have the dimension 0 and are not read.

    Raises:
        EmbeddingError: a file is missing or damaged.
    """
    if about["format"] == "parquet":
        return _read(store, f"{stem(part)}.parquet", lambda data: rows_of_parquet(data, features))
    found = None
    if features:
        found = _read(store, f"{stem(part)}.npy", lambda data: np.load(io.BytesIO(data), allow_pickle=False))
    lines = _read(store, f"{stem(part)}.jsonl", lambda data: [parse_json(line) for line in data.splitlines()])
    ids, labels = (np.array([line[name] for line in lines], np.int64) for name in ("id", "label"))
    found = np.zeros((len(ids), 0), np.float32) if found is None else found
    if len(found) != len(ids):
        raise EmbeddingError(f"the files of {store.url}/{stem(part)} do not belong together; {_REMEDY}")
    return Rows(found, ids, [line["name"] for line in lines], labels)


_AGAIN = "run the same fastmoco embed command again"
_REMEDY = f"remove the files of that part, and {_AGAIN}"


def _read(store: Store, name: str, parse: Any) -> Any:
    try:
        return parse(store.read(name))
    except FileNotFoundError:
        raise EmbeddingError(f"{store.url}/{name} is missing; {_AGAIN}") from None
    except OSError as error:
        raise EmbeddingError(in_words(error)) from None
    except ConfigError:
        raise
    except Exception as error:  # readers of formats raise any type
        raise EmbeddingError(f"{store.url}/{name} is damaged: {type(error).__name__}: {error}; {_REMEDY}") from None
