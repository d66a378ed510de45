"""Opening a shard set. Each error names the place and the command that creates or repairs the set."""

from __future__ import annotations

from pathlib import Path

from shards.errors import ShardIndexError, ShardSetError
from shards.format.manifest import MANIFEST, NUMBERED, Manifest, parse_manifest
from shards.storage.access import Access, open_access
from shards.storage.base import Store
from shards.storage.cache import FOLDER
from shards.storage.store import open_store


def opened_store(path: str | Path) -> Store:
    try:
        return open_store(path)
    except OSError as error:
        raise ShardSetError(f"cannot open the shard set {path}: {error.strerror}") from None


def opened_access(store: Store, digest: str) -> Access:
    try:
        return open_access(store, digest)
    except OSError as error:
        where = f"the cache folder {error.filename}: {error.strerror}"
        raise ShardSetError(f"cannot create {where}; set {FOLDER} to another folder") from None


def opened_manifest(store: Store) -> Manifest:
    place = f"{store.url}/{MANIFEST}"
    try:
        return parse_manifest(store.read(MANIFEST), place)
    except FileNotFoundError:
        names = _names(store)
    except OSError as error:
        raise ShardSetError(f"cannot read {place}: {error.strerror}") from None
    command = f"fastmoco-shard --src FOLDER_OF_IMAGES --out {store.url}"
    # An object store has no empty folders, so no names mean no set. A local folder may be there and empty.
    if not names and not (store.local and store.local.is_dir()):
        raise ShardSetError(f"no shard set at {store.url}: no such folder; to create one: {command}")
    # Before the tars: an unfinished packing has tars, too, and must not be indexed.
    if "packing.partial" in names or any(name.startswith("shard-") and name.endswith(".json") for name in names):
        raise ShardSetError(
            f"no {MANIFEST} in {store.url}, but an unfinished packing; to continue it, run the same fastmoco-shard"
            f" command again: {command}"
        )
    if any(name.endswith(".tar") for name in names):
        raise ShardSetError(
            f"no {MANIFEST} in {store.url}, but tars; to turn them into a set: fastmoco-shard index {store.url}"
        )
    raise ShardSetError(f"no {MANIFEST} in {store.url}, so it is not a shard set; to create one: {command}")


def _names(store: Store) -> list[str]:
    try:
        return store.names()
    except OSError as error:
        raise ShardSetError(f"cannot read {store.url}: {error.strerror}") from None


def index_error(store: Store, name: str, keys: str, cause: OSError | ValueError) -> ShardIndexError:
    """The error to raise if the `.npy` of a shard cannot be read or is damaged.

    Args:
        store: The set's files.
        name: File name of the index.
        keys: The manifest's `keys`, which decides the command that rebuilds the index.
        cause: What reading or parsing raised.
    """
    place = f"{store.url}/{name}"
    what = f"cannot read {place}: {cause.strerror}" if isinstance(cause, OSError) else f"{store.url}/{cause}"
    if keys != NUMBERED:
        return ShardIndexError(f"{what}; to rebuild it: fastmoco-shard index {store.url} --overwrite")
    # A packing that is run again checks which files a shard has, not their content: a damaged one has to be missing.
    first = "" if isinstance(cause, FileNotFoundError) else f"remove {name} and "
    return ShardIndexError(f"{what}; {first}run the fastmoco-shard command that packed the set again: it repairs it")
