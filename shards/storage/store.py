"""Opening stores and files at a local path or an fsspec URL such as `s3://bucket/prefix`."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from shards.storage.base import Store
from shards.storage.local import LocalStore
from shards.storage.network import Network, current
from shards.storage.places import WEB, is_url, local


def open_store(place: str | Path, network: Network | None = None) -> Store:
    """The store at a local path or an fsspec URL.

    Args:
        place: The path or URL.
        network: Settings of the connections; None: those of this process.

    Raises:
        OSError: The URL's protocol is unknown, or the package for it is not installed.
    """
    place = local(place) if isinstance(place, str) else place
    if is_url(place):
        return _kind(str(place))(str(place), network)
    return LocalStore(place)


def open_folder(url: str) -> tuple[Store, str]:
    """The store at a URL, and the name of the folder in it that the URL means: empty, but for a URL that ends in `//`.

    Raises:
        OSError: As `open_store`.
    """
    return open_store(url), "/" * (len(url) - len(url.rstrip("/")) - 1)


def _kind(url: str) -> Callable[[str, Network | None], Store]:
    from shards.storage import remote, s3, web

    if url.startswith("file:"):
        raise OSError(errno.EINVAL, "a file URL has the form file:///FOLDER/FILE; it names no other machine", url)
    if url.startswith(WEB):
        return web.WebStore
    return s3.S3Store if url.startswith(s3.SCHEMES) else remote.RemoteStore


def open_place(place: str) -> BinaryIO:
    """Open a file for reading; it is seekable.

    Raises:
        OSError: It cannot be opened; `strerror` gives the reason.
    """
    place = local(place)
    if not is_url(place):
        return open(place, "rb")
    store, name = remote(place)
    return store.open(name)


def remote(url: str, network: Network | None = None) -> tuple[Store, str]:
    """The bucket or host of a URL as a store, which is cached, and the file's name in it."""
    scheme, _, rest = url.partition("://")
    host, _, name = rest.partition("/")
    return _cached(f"{scheme}://{host}", network or current()), name


@lru_cache(maxsize=256)
def _cached(place: str, network: Network) -> Store:
    # A list of a million URLs names few hosts, and opening a store takes much longer than looking it up.
    return open_store(place, network)
