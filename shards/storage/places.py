"""Single files at a local path or an fsspec URL."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import BinaryIO

from shards.packing.options import is_url
from shards.storage.store import Store, open_store


def parent(place: str) -> str:
    """The folder that a file lies in."""
    return place.rpartition("/")[0] if is_url(place) else os.path.dirname(place) or "."


def joined(root: str, path: str) -> str:
    """`path` below `root`, as it is where it is absolute or a URL."""
    if is_url(path):
        return path
    return f"{root.rstrip('/')}/{path}" if is_url(root) else os.path.join(root, path)


def open_place(place: str) -> BinaryIO:
    """A file for reading, seekable.

    Raises:
        OSError: It cannot be opened; `strerror` says why.
    """
    if not is_url(place):
        return open(place, "rb")
    store, name = remote(place)
    return store.open(name)


def remote(url: str) -> tuple[Store, str]:
    """The bucket or host of a URL as a store, kept open, and the file's name in it."""
    scheme, _, rest = url.partition("://")
    host, _, name = rest.partition("/")
    return _store(f"{scheme}://{host}"), name


@lru_cache(maxsize=256)
def _store(url: str) -> Store:
    return open_store(url)
